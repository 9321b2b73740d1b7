"""The commands and their options, read off what configs/ declares."""

from __future__ import annotations

import contextlib
import io
import re
import sys
from dataclasses import dataclass, field, make_dataclass
from typing import Annotated, Any, Literal, NoReturn, get_args, get_origin

import tyro
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from longtake.arguments import CONFIG, JOBS, LATENTS, OUTPUT, RESUME, SHOTS, TALK
from longtake.configs.batch import BatchConfig
from longtake.configs.engine import EngineConfig
from longtake.configs.parallel import ParallelConfig
from longtake.configs.request import DecodeRequest, VideoRequest
from longtake.configs.serve import ServeConfig
from longtake.configs.snapshot import SnapshotConfig
from longtake.configs.tools import BenchConfig, DoctorConfig, PlanConfig, VerifyConfig

FILE_ONLY = ("prompt_template", "image_sha256")
"""What is too long for a flag, and can stand in a config file."""

_DESCRIPTION = "Long videos from diffusion transformers on any number of ranks."


def parsed(arguments: list[str]) -> tuple[str, dict[str, Any]]:
    """The command, one of ``FIELDS`` or ``version``, and its options by name.

    Raises:
        SystemExit: help was asked for, or an option is unknown, which is said in one line.
    """
    if arguments[:1] == ["--version"]:
        return "version", {}
    before, after = arguments, None
    if "--" in arguments:  # a prompt that begins with a dash
        before, after = arguments[: (at := arguments.index("--"))], arguments[at + 1 :]
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            command = tyro.cli(_COMMANDS, args=before, prog="longtake", description=_DESCRIPTION)
    except SystemExit as end:
        if end.code:
            of = before[0] if before and before[0] in FIELDS else "generate"
            _refused(of, _one_line_of_box(said.getvalue()))
        raise
    if isinstance(command, Version):
        return "version", {}
    name = type(command).__name__.lower()
    options: dict[str, Any] = vars(command)
    if after is not None:
        if "prompt" not in options:
            _refused(name, f"Unrecognized options: {' '.join(after)}")
        options["prompt"] = " ".join(after)
    given = {argument.replace("_", "-") for argument in before}
    for option, info in FIELDS[name].items():
        word = option.replace("_", "-")
        if info.annotation is bool and not given & {f"--{word}", f"--no-{word}"}:
            options[option] = None  # a switch that is off because nobody touched it
    return name, options


def _refused(command: str, words: str) -> NoReturn:
    print(f"longtake: {words}; see longtake {command} --help", file=sys.stderr)
    raise SystemExit(2)


def _one_line_of_box(box: str) -> str:
    """What tyro says in a box of several lines: the error, and the option that may be meant."""
    lines = [line.strip(" │") for line in box.splitlines() if line[:1] not in ("╭", "╰")]
    inside = [line for line in lines if line]
    if not box.startswith("╭"):  # in plain letters the title is a line, and a rule below it
        inside = inside[2:]
    rules = [at for at, line in enumerate(inside) if not line.strip("─-")]
    words = " ".join(inside[: rules[0]] if rules else inside).rstrip(".")
    if "or misplaced options" in words:  # another command's, which tyro then explains at length
        named = re.findall(r"(\S+) \(applied to", words)
        return f"Unrecognized options: {' '.join(named)}"
    if "Perhaps you meant:" in inside:
        words += f": perhaps you meant {inside[inside.index('Perhaps you meant:') + 1].split()[0]}"
    return words


def _declared(*configs: type[BaseModel], without: tuple[str, ...] = ()) -> dict[str, FieldInfo]:
    """The fields of some classes by name, each class's own before those that it shares."""
    fields: dict[str, FieldInfo] = {}
    for config in configs:
        own = [name for name in config.model_fields if name in config.__annotations__]
        for name in [*own, *config.model_fields]:
            if name not in without:
                fields[name] = config.model_fields[name]
    return fields


def _without(config: type[BaseModel], *names: str) -> tuple[str, ...]:
    """All fields of a class but these."""
    return tuple(name for name in config.model_fields if name not in names)


_RANKS = ("devices", "device")
_DEGREES = ("ulysses_degree", "ring_degree", "cfg_degree")
_PICTURES = ("image", "i2v_mode", "resize_mode", "image_folder")
_NOT_PLANNED = (
    "prompt",
    "negative_prompt",
    "sigmas",
    "guidance_scale",
    "flow_shift",
    "seed",
    "embed_metadata",
    "device",
    "device_ids",
    *_PICTURES,
    *(name for name in EngineConfig.model_fields if name.endswith("_timeout_s")),
)
"""What changes neither how long a rendering takes nor what it needs."""

FIELDS: dict[str, dict[str, FieldInfo]] = {
    "generate": _declared(
        VideoRequest,
        EngineConfig,
        ParallelConfig,
        SnapshotConfig,
        without=("parallel", "output_type", "autoencoder_only", *FILE_ONLY),
    ),
    "batch": _declared(
        BatchConfig,
        VideoRequest,
        EngineConfig,
        ParallelConfig,
        SnapshotConfig,
        without=(
            "prompt",
            "image_sha256",
            "parallel",
            "output_type",
            "autoencoder_only",
            *FILE_ONLY,
        ),
    ),
    "jobs": {},
    "serve": _declared(
        ServeConfig,
        EngineConfig,
        ParallelConfig,
        SnapshotConfig,
        without=("parallel", "autoencoder_only", "image_folder"),
    ),
    "decode": _declared(
        DecodeRequest,
        EngineConfig,
        without=(
            "parallel",
            "autoencoder_only",
            "attention_kernel",
            "image_folder",
            "text_timeout_s",
            "step_timeout_s",
        ),
    ),
    "plan": _declared(
        PlanConfig,
        VideoRequest,
        EngineConfig,
        ParallelConfig,
        without=(
            *_NOT_PLANNED,
            "parallel",
            "output_type",
            "autoencoder_only",
            "attention_kernel",
            *FILE_ONLY,
        ),
    ),
    "doctor": _declared(DoctorConfig, EngineConfig, without=_without(EngineConfig, *_RANKS)),
    "verify": _declared(
        VerifyConfig,
        VideoRequest,
        EngineConfig,
        ParallelConfig,
        without=(
            *DecodeRequest.model_fields,
            *_DEGREES,
            *(name for name in _PICTURES if name != "i2v_mode"),
            "parallel",
            "device_ids",
            "output_type",
            "autoencoder_only",
            "num_videos",
            "vae_dtype",
            "decode_timeout_s",
            *FILE_ONLY,
        ),
    ),
    "bench": _declared(
        BenchConfig, EngineConfig, without=_without(EngineConfig, *_RANKS, "model", "dtype")
    ),
}
"""What each command takes, by name; degrees are given one by one, and what is written follows from
the output's suffix."""


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
    if name == "output":
        described["aliases"] = ["-o"]
    kind = _kind(info.annotation)
    return name, Annotated[kind | None, tyro.conf.arg(**described)], field(default=None)


def _options_of(command: str) -> list[tuple[str, Any, Any]]:
    return [_option(name, info) for name, info in FIELDS[command].items()]


def _kind(annotation: Any) -> Any:
    """A text, or as many as the option has values."""
    words = str(annotation)
    if "tuple" not in words:
        return str
    return tuple[str, ...] if "..." in words else tuple[str, str, str]


def _metavar(annotation: Any) -> str:
    """What stands for an option's value in the help."""
    for each in (annotation, *get_args(annotation)):
        if get_origin(each) is Literal:
            return "|".join(get_args(each))
    if _kind(annotation) == tuple[str, str, str]:
        return "FRAMES HEIGHT WIDTH"
    if _kind(annotation) == tuple[str, ...] and "float" not in str(annotation):
        return "TEXT ..."
    if "Path" in str(annotation):
        return "PATH"
    words = (("bool", "true|false"), ("tuple", "NUMBER ..."), ("float", "NUMBER"), ("int", "INT"))
    return next((word for part, word in words if part in str(annotation)), "TEXT")


Batch: Any = make_dataclass("Batch", [*SHOTS, *_options_of("batch"), *TALK])
Jobs: Any = make_dataclass("Jobs", [*JOBS, *TALK])
Serve: Any = make_dataclass("Serve", [*_options_of("serve"), *TALK])
Generate: Any = make_dataclass(
    "Generate", [*_options_of("generate"), *OUTPUT, RESUME, *TALK, CONFIG]
)
Decode: Any = make_dataclass("Decode", [LATENTS, *_options_of("decode"), *OUTPUT, *TALK])
Plan: Any = make_dataclass("Plan", [*_options_of("plan"), *TALK])
Doctor: Any = make_dataclass("Doctor", [*_options_of("doctor"), *TALK])
Verify: Any = make_dataclass("Verify", [*_options_of("verify"), *TALK])
Bench: Any = make_dataclass("Bench", [*_options_of("bench"), *TALK])


@dataclass(frozen=True)
class Version:
    """Print the version."""


_COMMANDS: Any = (
    Annotated[
        Generate,
        tyro.conf.subcommand("generate", description="Render a video from a prompt."),
    ]
    | Annotated[
        Batch,
        tyro.conf.subcommand(
            "batch", description="Render a file of shots; the same command again goes on."
        ),
    ]
    | Annotated[
        Jobs,
        tyro.conf.subcommand(
            "jobs", description="See, cancel or retry what a batch renders in a folder."
        ),
    ]
    | Annotated[
        Serve,
        tyro.conf.subcommand("serve", description="Serve videos over HTTP, and a page."),
    ]
    | Annotated[
        Decode,
        tyro.conf.subcommand("decode", description="Make a video of latents in a file."),
    ]
    | Annotated[
        Plan,
        tyro.conf.subcommand(
            "plan", description="Say how long a video will take and whether it fits, by layout."
        ),
    ]
    | Annotated[
        Doctor,
        tyro.conf.subcommand("doctor", description="Look at this machine, and say what is amiss."),
    ]
    | Annotated[
        Verify,
        tyro.conf.subcommand(
            "verify", description="Compare what one rank renders with what each layout does."
        ),
    ]
    | Annotated[
        Bench,
        tyro.conf.subcommand("bench", description="Measure this machine, or write its profile."),
    ]
    | Annotated[Version, tyro.conf.subcommand("version")]
)
