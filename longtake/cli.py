"""The command line. Its options are read off VideoRequest, EngineConfig and ParallelConfig."""

from __future__ import annotations

import contextlib
import io
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
from longtake.engine.torchrun import TorchrunPlace
from longtake.engine.video_writer import VideoFiles, check_output, output_type
from longtake.engine.worker import Nowhere
from longtake.errors import EngineError, RefusedInputError, RequestError, Stopped, one_line
from longtake.terminal import View, view_of

EXIT_DONE, EXIT_REFUSED, EXIT_FAILED, EXIT_STOPPED = 0, 2, 3, 130

_COMMAND_LINE_ONLY = ("config", "output", "metadata", "quiet", "json")
_NOT_OPTIONS = ("parallel", "output_type")  # written in parts; follows from the output's suffix
_FILE_ONLY = ("prompt_template",)  # too long for a flag
_DEGREES = ("ulysses_degree", "ring_degree", "cfg_degree")
_REPLACED = {
    **dict.fromkeys(("devices", "true_cfg_scale", *_DEGREES), _DEGREES),
    "model": ("revision",),
}
"""What of a video's own settings no longer holds once a flag is given: they need not fit it."""


_DESCRIPTION = "Long videos from diffusion transformers on any number of ranks."


def main(arguments: list[str] | None = None) -> int:
    """Run a command.

    Returns:
        0 done, 2 refused input, 3 engine failure, 130 stopped.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup asks for
            signal.signal(number, _interrupt)
    options = _parsed(sys.argv[1:] if arguments is None else arguments)
    if options is None:
        print(longtake.__version__)
        return EXIT_DONE
    view = view_of(quiet=options["quiet"], as_json=options["json"])
    level = logging.ERROR if options["quiet"] else logging.WARNING
    logging.basicConfig(level=level, format="%(levelname)s: %(message)s")
    written: list[Path] = []
    try:
        with view:
            _generate(options, view, written)
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


def _parsed(arguments: list[str]) -> dict[str, Any] | None:
    """The options of ``generate``, or None where the version is asked for.

    Raises:
        SystemExit: help was asked for, or an option is unknown, which is said in one line.
    """
    if arguments[:1] == ["--version"]:
        return None
    before, after = arguments, None
    if "--" in arguments:  # a prompt that begins with a dash
        before, after = arguments[: (at := arguments.index("--"))], arguments[at + 1 :]
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            command = tyro.cli(_COMMANDS, args=before, prog="longtake", description=_DESCRIPTION)
    except SystemExit as end:
        if end.code:
            print(f"longtake: {_one_line_of_box(said.getvalue())}", file=sys.stderr)
        raise
    if not isinstance(command, Generate):
        return None
    options: dict[str, Any] = vars(command)
    if after is not None:
        options["prompt"] = " ".join(after)
    given = {argument.replace("_", "-") for argument in before}
    for name, info in _fields().items():
        word = name.replace("_", "-")
        if info.annotation is bool and not given & {f"--{word}", f"--no-{word}"}:
            options[name] = None  # a switch that is off because nobody touched it
    return options


def _one_line_of_box(box: str) -> str:
    """What tyro says in a box of several lines: the error, and the option that may be meant."""
    lines = [line.strip(" │") for line in box.splitlines() if line[:1] not in ("╭", "╰")]
    inside = [line for line in lines if line]
    if not box.startswith("╭"):  # in plain letters the title is a line, and a rule below it
        inside = inside[2:]
    rules = [at for at, line in enumerate(inside) if not line.strip("─-")]
    words = " ".join(inside[: rules[0]] if rules else inside).rstrip(".")
    if "Perhaps you meant:" in inside:
        words += f": perhaps you meant {inside[inside.index('Perhaps you meant:') + 1].split()[0]}"
    return f"{words}; see longtake generate --help"


def _generate(options: dict[str, Any], view: View, written: list[Path]) -> None:
    """Render what the options ask for.

    Args:
        written: filled with the files once they have their names.
    """
    values = _values(options)
    output = values.pop("output", "out.mp4")
    if not isinstance(output, str):
        raise RequestError(f"output={output!r} must be a path, in quotes where it is a number")
    path = Path(os.path.expanduser(output))
    asked = {name: values.pop(name) for name in list(values) if name in VideoRequest.model_fields}
    asked["output_type"] = output_type(path)
    request = _validated(VideoRequest, asked)
    config = _engine_config(values)
    if TorchrunPlace.writes():  # the folder may be on another host
        check_output(path, request.num_videos, metadata=options["metadata"])
    engine = VideoEngine(config)
    try:
        resolved = engine.resolve(request)
        if not engine.writes:
            engine.render(resolved, Nowhere(), view.progress)
            return
        with VideoFiles(path, resolved, metadata=options["metadata"]) as files:
            engine.start(view.progress)
            metadata = engine.render(resolved, files, view.progress)
            view.writing()
            metadata.seconds["writing"] = files.seconds
            try:
                files.publish(metadata.as_json())
            finally:
                written.extend(files.published)
        view.done(files.paths, metadata)
    finally:
        engine.close()


def _values(options: dict[str, Any]) -> dict[str, Any]:
    """The config file's values, and over them the flags'."""
    flags = {
        name: value
        for name, value in options.items()
        if value is not None and (name not in _COMMAND_LINE_ONLY or name == "output")
    }
    if options["config"] is None:
        return flags
    values, of_a_video = _read_config(Path(options["config"]))
    for flag in flags:
        for name in _REPLACED.get(flag, ()) if of_a_video else ():
            values.pop(name, None)
    for one, other in (("sigmas", "num_inference_steps"), ("num_inference_steps", "sigmas")):
        if one in flags and other not in flags:
            values.pop(other, None)
    return {**values, **flags}


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
        content.pop("output_type", None)
    values = {str(name).replace("-", "_"): value for name, value in content.items()}
    known = {*_fields(), *_FILE_ONLY, "output"}
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


def _fields() -> dict[str, FieldInfo]:
    """Everything that can be asked for, by name."""
    declared: dict[str, FieldInfo] = {}
    for config in (VideoRequest, EngineConfig, ParallelConfig):
        assert issubclass(config, BaseModel)
        declared.update(config.model_fields)
    hidden = {*_NOT_OPTIONS, *_FILE_ONLY}
    return {name: info for name, info in declared.items() if name not in hidden}


def _option(name: str, info: FieldInfo) -> tuple[str, Any, Any]:
    """One option of the command line. It stays a text: values are checked where it is declared."""
    given = "" if info.default is None or info.is_required() else f"(default: {info.default})"
    described: dict[str, Any] = {"help": info.description, "help_behavior_hint": given}
    if name == "prompt":
        prompt = tyro.conf.arg(metavar="PROMPT", **described)
        return name, Annotated[str | None, tyro.conf.Positional, prompt], field(default=None)
    if info.annotation is bool:
        return name, Annotated[bool, tyro.conf.arg(**described)], field(default=False)
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
