"""The command line. Its options are read off VideoRequest, EngineConfig and ParallelConfig."""

from __future__ import annotations

import logging
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

import longtake
from longtake.configs.engine import EngineConfig
from longtake.configs.parallel import ParallelConfig
from longtake.configs.request import (
    DecodeRequest,
    ResolvedDecode,
    VideoRequest,
)
from longtake.engine.engine import VideoEngine
from longtake.engine.latents import Array, Origin, read_latents
from longtake.engine.torchrun import TorchrunPlace
from longtake.engine.video_writer import VideoFiles, check_output, output_type
from longtake.engine.worker import Nowhere
from longtake.errors import (
    EngineError,
    RefusedInputError,
    RequestError,
    Stopped,
    one_line,
)
from longtake.options import FIELDS, FILE_ONLY, parsed
from longtake.terminal import View, view_of

EXIT_DONE, EXIT_REFUSED, EXIT_FAILED, EXIT_STOPPED = 0, 2, 3, 130

_COMMAND_LINE_ONLY = ("config", "output", "metadata", "quiet", "json", "latents")
_DEGREES = ("ulysses_degree", "ring_degree", "cfg_degree")
_REPLACED = {
    **dict.fromkeys(("devices", "true_cfg_scale", *_DEGREES), _DEGREES),
    "model": ("revision",),
    "decode": ("decode_tile_size", "decode_tile_stride"),
    "decode_tile_size": ("decode_tile_stride",),
}
"""What of a video's own settings no longer holds once a flag is given: they need not fit it."""


def main(arguments: list[str] | None = None) -> int:
    """Run a command.

    Returns:
        0 done, 2 refused input, 3 engine failure, 130 stopped.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup asks for
            signal.signal(number, _interrupt)
    command, options = parsed(sys.argv[1:] if arguments is None else arguments)
    if command == "version":
        print(longtake.__version__)
        return EXIT_DONE
    view = view_of(quiet=options["quiet"], as_json=options["json"])
    level = logging.ERROR if options["quiet"] else logging.WARNING
    logging.basicConfig(level=level, format="%(levelname)s: %(message)s")
    written: list[Path] = []
    try:
        with view:
            (_decode if command == "decode" else _generate)(options, view, written)
        return EXIT_DONE
    except (KeyboardInterrupt, Stopped):
        left = " ".join(map(str, written)) or "nothing"
        return view.failed(f"stopped; {left} was written", "stopped", EXIT_STOPPED)
    except RefusedInputError as error:
        return view.failed(str(error), type(error).__name__, EXIT_REFUSED)
    except EngineError as error:
        return view.failed(str(error), type(error).__name__, EXIT_FAILED)
    except Exception as error:
        traceback.print_exc()
        return view.failed(one_line(error), type(error).__name__, EXIT_FAILED)


def _generate(options: dict[str, Any], view: View, written: list[Path]) -> None:
    """Render what the options ask for.

    Args:
        written: filled with the files once they have their names.
    """
    values = _values(options)
    path = _output(values.pop("output", None))
    asked = {name: values.pop(name) for name in list(values) if name in VideoRequest.model_fields}
    asked["output_type"] = output_type(path)
    request = _validated(VideoRequest, asked)
    config = _engine_config(values)
    if TorchrunPlace.writes():  # the folder may be on another host
        check_output(path, request.num_videos, metadata=options["metadata"])
    engine = VideoEngine(config)
    try:
        _write(engine, engine.resolve(request), path, options, view, written)
    finally:
        engine.close()


def _decode(options: dict[str, Any], view: View, written: list[Path]) -> None:
    """Make a video of a file of latents. Under torchrun, rank 0 alone reads it."""
    values = {**_flags(options), "autoencoder_only": True}
    path = _output(options["output"])
    asked = {name: values.pop(name) for name in list(values) if name in DecodeRequest.model_fields}
    if TorchrunPlace.given() and "model" not in values:
        raise RequestError("--model must be named under torchrun: rank 0 alone reads the latents")
    if not TorchrunPlace.writes():
        engine = VideoEngine(_engine_config(values))
        try:
            engine.render(None, Nowhere(), view.progress)
        finally:
            engine.close()
        return
    if output_type(path) == "latents":
        raise RequestError(f"output={str(path)!r} is for latents, which are there: use .mp4, say")
    file = read_latents(Path(os.path.expanduser(options["latents"])))
    check_output(path, len(file.latents), metadata=options["metadata"])
    if file.origin is not None:
        asked, values = _over_origin(file.origin, asked, values)
    request = _validated(DecodeRequest, asked)
    engine = VideoEngine(_engine_config(values))
    try:
        resolved = engine.resolve_decode(request, file.latents.shape)
        origin = file.origin if file.origin is not None and file.origin.made(resolved) else None
        if origin is not None:
            resolved = origin.decoded(resolved)
        _write(engine, resolved, path, options, view, written, file.latents, origin)
    finally:
        engine.close()


def _over_origin(
    origin: Origin, asked: dict[str, Any], values: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What is asked of decoding and of the engine, over what the header of the latents says."""
    of_the_file = origin.request.model_dump(include=set(DecodeRequest.model_fields))
    engine = {}
    if "model" not in values:
        engine = {"model": origin.engine.model, "revision": origin.engine.revision}
    if "dtype" not in values:
        engine["vae_dtype"] = origin.engine.vae_dtype
    return _over(of_the_file, asked), {**engine, **values}


def _write(
    engine: VideoEngine,
    request: ResolvedDecode,
    path: Path,
    options: dict[str, Any],
    view: View,
    written: list[Path],
    latents: Array | None = None,
    origin: Origin | None = None,
) -> None:
    """Render or decode into files; ``written`` is filled with those that have their names."""
    if not engine.writes:
        engine.render(request, Nowhere(), view.progress)
        return
    files = VideoFiles(path, request, engine.config, metadata=options["metadata"])
    try:
        with files:
            engine.start(view.progress)
            metadata = engine.render(request, files, view.progress, latents)
            metadata.origin = origin
            view.writing()
            metadata.seconds["writing"] = files.seconds
            files.publish(metadata.as_json())
    finally:
        written += [*files.published, *filter(None, [files.kept.path])]
    view.done(files.paths, metadata)


def _output(name: Any) -> Path:
    if name is not None and not isinstance(name, str):
        raise RequestError(f"output={name!r} must be a path, in quotes where it is a number")
    return Path(os.path.expanduser(name or "out.mp4"))


def _flags(options: dict[str, Any]) -> dict[str, Any]:
    """The options that were given and that a config file could hold."""
    return {
        name: value
        for name, value in options.items()
        if value is not None and name not in _COMMAND_LINE_ONLY
    }


def _values(options: dict[str, Any]) -> dict[str, Any]:
    """The config file's values, and over them the flags'."""
    flags = _flags(options)
    if options["output"] is not None:
        flags["output"] = options["output"]
    if options["config"] is None:
        return flags
    values, of_a_video = _read_config(Path(options["config"]))
    for one, other in (("sigmas", "num_inference_steps"), ("num_inference_steps", "sigmas")):
        if one in flags and other not in flags:
            values.pop(other, None)
    return _over(values, flags) if of_a_video else {**values, **flags}


def _over(values: dict[str, Any], flags: dict[str, Any]) -> dict[str, Any]:
    """A video's own settings, and over them flags, with which some no longer hold."""
    replaced = {name for flag in flags for name in _REPLACED.get(flag, ())}
    return {**{n: value for n, value in values.items() if n not in replaced}, **flags}


def _read_config(path: Path) -> tuple[dict[str, Any], bool]:
    """A YAML file of options by name; or the metadata of a video, to render it again.

    Returns:
        The options, and whether it is a video's metadata.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise RequestError(f"config={str(path)!r} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RequestError(f"config={str(path)!r} is no YAML: {one_line(error)}") from error
    if not isinstance(content, dict):
        raise RequestError(f"config={str(path)!r} must map options to values, e.g. height: 720")
    parts = (content.get("request"), content.get("engine"))
    of_a_video = all(isinstance(part, dict) for part in parts)
    if of_a_video:
        content = {name: value for part in parts for name, value in dict(part or {}).items()}
        parallel = content.pop("parallel", None)
        content.update(parallel if isinstance(parallel, dict) else {})
        for name in ("output_type", "autoencoder_only"):  # follow from the command
            content.pop(name, None)
    values = {str(name).replace("-", "_"): value for name, value in content.items()}
    known = {*FIELDS["generate"], *FILE_ONLY, "output"}
    for name in values:
        if name not in known:
            raise RequestError(
                f"config={str(path)!r} has {name}, which is not an option: see "
                "longtake generate --help"
            )
    return {name: value for name, value in values.items() if value is not None}, of_a_video


def _engine_config(values: dict[str, Any]) -> EngineConfig:
    degrees = {n: values.pop(n) for n in list(values) if n in ParallelConfig.model_fields}
    config: EngineConfig = _validated(
        EngineConfig, {**values, "parallel": _validated(ParallelConfig, degrees)}
    )
    return config


def _validated(kind: type[Any], values: dict[str, Any]) -> Any:
    try:
        return kind(**values)
    except ValidationError as error:
        raise RequestError(one_line(error)) from error


class _Terminated(KeyboardInterrupt):
    """The command was told to end by a signal that is not Ctrl-C; see :class:`Stopped`."""

    terminated = True


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt if number == signal.SIGINT else _Terminated


if __name__ == "__main__":
    sys.exit(main())
