"""longtake bench: measure this machine, or write its hardware profile for plans."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import yaml

from longtake.cli.settings import given_values, pop_fields
from longtake.cli.terminal import View, print_line
from longtake.configs.commands.tools import BenchConfig
from longtake.configs.engine import EngineConfig
from longtake.engine.planning.hardware import hardware_here
from longtake.engine.resolve.outline import device_type_of
from longtake.engine.tools.bench.calibrate import calibrate
from longtake.engine.tools.bench.suites import Suites, environment
from longtake.errors import RequestError
from longtake.files.atomic import cause, probe, write_atomically, write_to_unused
from longtake.pipelines import registry
from longtake.pipelines.loading.checkpoint import Checkpoint
from longtake.pipelines.runtime.progress import Progress

_SUITES = ("kernels", "links", "step", "decode")

OnMeasure = Callable[[str], None]
"""Called with the name of each measurement before it starts."""


def run(options: dict[str, Any], view: View) -> None:
    """Measure this machine, and write the results or its hardware profile to a file."""
    values = given_values(options)
    settings = BenchConfig(**pop_fields(values, BenchConfig), output=options["output"] or None)
    config = EngineConfig(weights="resident", text_weights="resident", **values)
    device_type = device_type_of(config)
    started = datetime.now()
    kind, suffix = ("profile", "yaml") if settings.calibrate else ("bench", "md")
    name = settings.output or f"longtake-{kind}-{started:%Y-%m-%d-%H%M}.{suffix}"
    path = Path(os.path.expanduser(name))
    _check_output(path, suffix, may_exist=settings.overwrite or settings.output is None)

    def on_measure(name: str) -> None:
        view.progress(Progress("measuring", detail=name))

    measure = _profile if settings.calibrate else _report
    content = measure(settings, config, device_type, on_measure)
    if settings.overwrite:
        write_atomically(path, content.encode())
    else:
        path = write_to_unused(path, content.encode())
    view.written.append(path)
    view.close()
    if options["json"]:
        event = {"event": "done", "output": str(path), "content": content}
        print_line(json.dumps(event), sys.stdout)
    elif not options["quiet"]:
        if not settings.calibrate:
            print_line(content, sys.stdout)
        print_line(f"written to {path}", sys.stdout)


def _profile(
    settings: BenchConfig,
    config: EngineConfig,
    device_type: Literal["cpu", "cuda"],
    on_measure: OnMeasure,
) -> str:
    """The hardware profile of this machine, in YAML."""
    checkpoint = Checkpoint.open(config.model, config.revision, configs_only=True)
    head_size = registry.inspect(checkpoint, weights=False).head_size
    profile = calibrate(
        device_type,
        config.devices,
        head_size=head_size,
        rounds=settings.rounds,
        on_measure=on_measure,
    )
    return yaml.safe_dump(profile.model_dump(mode="json"), sort_keys=False)


def _report(
    settings: BenchConfig,
    config: EngineConfig,
    device_type: Literal["cpu", "cuda"],
    on_measure: OnMeasure,
) -> str:
    """The results of the suites, in Markdown."""
    registry.inspect(Checkpoint.open(config.model, config.revision))  # refuse before measuring
    suites = Suites(config, device_type, hardware_here(device_type), settings.rounds, on_measure)
    names = _SUITES if settings.suite == "all" else (settings.suite,)
    parts = [f"# longtake bench, {datetime.now():%Y-%m-%d %H:%M}", environment(device_type)]
    for name in names:
        parts += [f"## {name}", getattr(suites, name)()]
    return "\n\n".join(parts) + "\n"


def _check_output(path: Path, suffix: str, *, may_exist: bool) -> None:
    """Refuse an output that cannot be written, before anything is measured.

    Args:
        path: The output file.
        suffix: The suffix that it must have, without the dot.
        may_exist: Whether an existing file is accepted: it is replaced, or the name gets a number.
    """
    if path.suffix != f".{suffix}":
        raise RequestError(f"output={str(path)!r} must end in .{suffix}")
    if not path.parent.is_dir():
        raise RequestError(
            f"output={str(path)!r}: there is no folder {path.parent}: create it first"
        )
    if path.is_dir():
        raise RequestError(f"output={str(path)!r} is a folder: name a file")
    try:
        probe(path.parent)
        path.lstat()
    except FileNotFoundError:
        return
    except OSError as error:
        raise RequestError(f"output={str(path)!r} cannot be written: {cause(error)}") from error
    if not may_exist:
        raise RequestError(
            f"output={str(path)!r} already exists: name another one, or pass --overwrite"
        )
