"""longtake bench: measures the machine at hand, or writes its profile for plans."""

from __future__ import annotations

import json
import os
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from longtake.cli.settings import flags
from longtake.cli.terminal import View, say
from longtake.configs.engine import EngineConfig
from longtake.configs.tools import BenchConfig
from longtake.engine.outline import device_type_of
from longtake.engine.planning.hardware import hardware_here
from longtake.engine.tools.bench.calibrate import calibrate
from longtake.engine.tools.bench.suites import Suites, environment
from longtake.errors import RequestError
from longtake.files.atomic import cause, probe, write_new, write_whole
from longtake.pipelines import registry
from longtake.pipelines.checkpoint import Checkpoint
from longtake.pipelines.progress import Progress

_SUITES = ("kernels", "links", "step", "decode")


def run(options: dict[str, Any], view: View) -> None:
    """Measure what the options ask for, and write it to a file."""
    values = flags(options)
    output = options["output"]
    asked = BenchConfig(
        **{name: values[name] for name in BenchConfig.model_fields if name in values}
    )
    config = EngineConfig(
        **{name: values[name] for name in EngineConfig.model_fields if name in values}
    )
    device_type = device_type_of(config)
    begun = datetime.now()
    kind = "profile" if asked.calibrate else "bench"
    suffix = "yaml" if asked.calibrate else "md"
    path = Path(os.path.expanduser(output or f"longtake-{kind}-{begun:%Y-%m-%d-%H%M}.{suffix}"))
    overwrite = bool(options["overwrite"])
    _check(path, suffix, replaced=overwrite or output is None)

    def measuring(what: str) -> None:
        view.progress(Progress("measuring", detail=what))

    checkpoint = Checkpoint.open(config.model, config.revision, configs_only=asked.calibrate)
    spec = registry.inspect(checkpoint, weights=not asked.calibrate)
    if asked.calibrate:
        profile = calibrate(
            device_type,
            config.devices,
            head_size=spec.head_size,
            rounds=asked.rounds,
            say=measuring,
        )
        content = yaml.safe_dump(profile.model_dump(mode="json"), sort_keys=False)
    else:
        suites = Suites(config, device_type, hardware_here(device_type), asked.rounds, measuring)
        named = _SUITES if asked.suite == "all" else (asked.suite,)
        parts = [f"# longtake bench, {begun:%Y-%m-%d %H:%M}", environment(device_type)]
        for name in named:
            parts += [f"## {name}", getattr(suites, name)()]
        content = "\n\n".join(parts) + "\n"
    if overwrite:
        write_whole(path, content.encode())
    else:
        path = write_new(path, content.encode())
    view.written.append(path)
    view.close()
    if options["json"]:
        done = {"event": "done", "output": str(path), "content": content}
        say(json.dumps(done), sys.stdout)
    elif not options["quiet"]:
        if not asked.calibrate:
            say(content, sys.stdout)
        say(f"written to {path}", sys.stdout)


def _check(path: Path, suffix: str, *, replaced: bool) -> None:
    """Refuse before anything is measured what could not be written.

    Args:
        replaced: whether a file may be there: it is replaced, or the name gets a number.
    """
    if path.suffix != f".{suffix}":
        raise RequestError(f"output={str(path)!r} must end in .{suffix}")
    if not path.parent.is_dir():
        raise RequestError(f"output={str(path)!r}: there is no folder {path.parent}: make it first")
    if path.is_dir():
        raise RequestError(f"output={str(path)!r} is a folder: name a file")
    try:
        probe(path.parent)
        path.lstat()
    except FileNotFoundError:
        return
    except OSError as error:
        raise RequestError(f"output={str(path)!r} cannot be written: {cause(error)}") from error
    if not replaced:
        raise RequestError(
            f"output={str(path)!r} is there already: name another one, or pass --overwrite"
        )
