"""The command line. Its options are read off VideoRequest, EngineConfig and ParallelConfig."""

from __future__ import annotations

import logging
import os
import signal
import sys
import traceback
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import tyro
import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

import longtake
from longtake.configs.engine import EngineConfig
from longtake.configs.parallel import ParallelConfig
from longtake.configs.request import VideoRequest
from longtake.engine.engine import VideoEngine
from longtake.engine.video import metadata_path
from longtake.engine.video_writer import VideoFiles, check_output, output_type
from longtake.errors import EngineError, RefusedInputError, RequestError, Stopped, one_line
from longtake.terminal import View, view_of

EXIT_DONE, EXIT_REFUSED, EXIT_FAILED, EXIT_STOPPED = 0, 2, 3, 130

_COMMAND_LINE_ONLY = ("config", "output", "metadata", "quiet", "json")
_NOT_OPTIONS = ("parallel", "output_type")  # written in parts; follows from the output's suffix


_DESCRIPTION = "Long videos from diffusion transformers on any number of ranks."


def main(arguments: list[str] | None = None) -> int:
    """Run a command.

    Returns:
        0 done, 2 refused input, 3 engine failure, 130 stopped.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup asks for
        signal.signal(signal.SIGHUP, _interrupt)
    command = tyro.cli(_COMMANDS, args=arguments, prog="longtake", description=_DESCRIPTION)
    if not isinstance(command, Generate):
        print(longtake.__version__)
        return EXIT_DONE
    options = vars(command)
    view = view_of(quiet=options["quiet"], as_json=options["json"])
    level = logging.ERROR if options["quiet"] else logging.WARNING
    logging.basicConfig(level=level, format="%(levelname)s: %(message)s")
    try:
        with view:
            _generate(options, view)
        return EXIT_DONE
    except (KeyboardInterrupt, Stopped):
        return view.failed("stopped; nothing was written", "stopped", EXIT_STOPPED)
    except RefusedInputError as error:
        return view.failed(str(error), type(error).__name__, EXIT_REFUSED)
    except EngineError as error:
        return view.failed(str(error), type(error).__name__, EXIT_FAILED)
    except Exception as error:
        traceback.print_exc()
        return view.failed(one_line(error), type(error).__name__, EXIT_FAILED)


def _generate(options: dict[str, Any], view: View) -> None:
    """Render what the options ask for."""
    values = _values(options)
    path = Path(os.path.expanduser(str(values.pop("output", "out.mp4"))))
    asked = {name: values.pop(name) for name in list(values) if name in VideoRequest.model_fields}
    asked["output_type"] = output_type(path)
    request = _validated(VideoRequest, asked)
    config = _engine_config(values)
    check_output(path, request.num_videos)
    if options["metadata"] and metadata_path(path).is_dir():
        raise RequestError(f"{metadata_path(path)} is a folder: move it, or pass --no-metadata")
    engine = VideoEngine(config)
    try:
        resolved = engine.resolve(request)
        engine.start(view.progress)
        with VideoFiles(path, resolved) as files:
            metadata = engine.render(resolved, files, view.progress)
            if not engine.writes:
                return
            view.writing()
            files.publish()
        metadata.seconds["writing"] = view.seconds_writing()
        if options["metadata"]:
            metadata.save(metadata_path(path))
        view.done(files.paths, metadata)
    finally:
        engine.close()


def _values(options: dict[str, Any]) -> dict[str, Any]:
    """The config file's values, and over them the flags'."""
    values = _read_config(Path(options["config"])) if options["config"] else {}
    flags = {
        name: value
        for name, value in options.items()
        if name not in _COMMAND_LINE_ONLY or name == "output"
    }
    values.update({name: value for name, value in flags.items() if value not in (None, False)})
    return values


def _read_config(path: Path) -> dict[str, Any]:
    """A YAML file of options by name; or the metadata of a video, to render it again."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise RequestError(f"config={str(path)!r} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RequestError(f"config={str(path)!r} is no YAML: {one_line(error)}") from error
    if not isinstance(content, dict):
        raise RequestError(f"config={str(path)!r} must map options to values, e.g. height: 720")
    if isinstance(content.get("request"), dict) and isinstance(content.get("engine"), dict):
        content = {**content["request"], **content["engine"]}
        content.update(content.pop("parallel", {}))
    values = {str(name).replace("-", "_"): value for name, value in content.items()}
    values.pop("output_type", None)
    known = {*_fields(), "output"}
    for name in values:
        if name not in known:
            raise RequestError(
                f"config={str(path)!r} has {name}, which is not an option: see "
                "longtake generate --help"
            )
    return {name: value for name, value in values.items() if value is not None}


def _engine_config(values: dict[str, Any]) -> EngineConfig:
    degrees = {n: values.pop(n) for n in list(values) if n in ParallelConfig.model_fields}
    if "model" not in values:
        raise RequestError("model is missing: pass --model with a folder or a hub id")
    config: EngineConfig = _validated(
        EngineConfig, {**values, "parallel": _validated(ParallelConfig, degrees)}
    )
    return config


def _validated(kind: type[Any], values: dict[str, Any]) -> Any:
    try:
        return kind(**values)
    except ValidationError as error:
        raise RequestError(one_line(error)) from error


def _fields() -> dict[str, FieldInfo]:
    """Everything that can be asked for, by name."""
    declared: dict[str, FieldInfo] = {}
    for config in (VideoRequest, EngineConfig, ParallelConfig):
        assert issubclass(config, BaseModel)
        declared.update(config.model_fields)
    return {name: info for name, info in declared.items() if name not in _NOT_OPTIONS}


def _option(name: str, info: FieldInfo) -> tuple[str, Any, Any]:
    """One option of the command line. It stays a text: values are checked where it is declared."""
    given = "" if info.default is None or info.is_required() else f"(default: {info.default})"
    described: dict[str, Any] = {"help": info.description, "help_behavior_hint": given}
    if name == "prompt":
        prompt = tyro.conf.arg(metavar="PROMPT", **described)
        return name, Annotated[str | None, tyro.conf.Positional, prompt], field(default=None)
    if info.annotation is bool:
        switch = Annotated[bool, tyro.conf.FlagCreatePairsOff, tyro.conf.arg(**described)]
        return name, switch, field(default=False)
    described["metavar"] = _metavar(info.annotation)
    kind: Any = tuple[str, ...] if name == "sigmas" else str
    return name, Annotated[kind | None, tyro.conf.arg(**described)], field(default=None)


def _metavar(annotation: Any) -> str:
    """What stands for an option's value in the help."""
    choices = get_args(annotation) if get_origin(annotation) is Literal else ()
    if choices:
        return "|".join(choices)
    words = (("bool", "true|false"), ("tuple", "NUMBER ..."), ("float", "NUMBER"), ("int", "INT"))
    return next((word for part, word in words if part in str(annotation)), "TEXT")


_OWN_OPTIONS: list[tuple[str, Any, Any]] = [
    (
        "output",
        Annotated[
            str | None,
            tyro.conf.arg(
                aliases=["-o"],
                metavar="PATH",
                help="File that is written: .mp4, .webm, .gif, .npy (float32 frames), "
                ".safetensors (latents), or a folder for .png",
                help_behavior_hint="(default: out.mp4)",
            ),
        ],
        field(default=None),
    ),
    (
        "config",
        Annotated[
            str | None,
            tyro.conf.arg(
                metavar="FILE",
                help="YAML file of options, which flags override; or a video's .json, to render "
                "it again",
                help_behavior_hint="",
            ),
        ],
        field(default=None),
    ),
    (
        "metadata",
        Annotated[bool, tyro.conf.arg(help="Write a .json beside the video")],
        field(default=True),
    ),
    (
        "quiet",
        Annotated[
            bool, tyro.conf.FlagCreatePairsOff, tyro.conf.arg(help="Print nothing but errors")
        ],
        field(default=False),
    ),
    (
        "json",
        Annotated[
            bool,
            tyro.conf.FlagCreatePairsOff,
            tyro.conf.arg(help="Print progress as JSON, an event a line"),
        ],
        field(default=False),
    ),
]

Generate: Any = make_dataclass(
    "Generate", [*(_option(name, info) for name, info in _fields().items()), *_OWN_OPTIONS]
)


@dataclass(frozen=True)
class Version:
    """Print the version."""


_COMMANDS: Any = (
    Annotated[
        Generate,
        tyro.conf.subcommand("generate", description="Render a video from a prompt."),
    ]
    | Annotated[Version, tyro.conf.subcommand("version")]
)


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
