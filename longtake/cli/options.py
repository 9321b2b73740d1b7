"""The commands and their options, read off what configs/ declares."""

from __future__ import annotations

from dataclasses import dataclass, field, make_dataclass
from typing import Annotated, Any, Literal, get_args, get_origin

import tyro
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from longtake.cli.arguments import CONFIG, JOBS, LATENTS, OUTPUT, PROMPT, RESUME, SHOTS, TALK
from longtake.configs.batch import BatchConfig
from longtake.configs.engine import EngineConfig
from longtake.configs.parallel import ParallelConfig
from longtake.configs.request import DecodeRequest, VideoRequest
from longtake.configs.serve import ServeConfig
from longtake.configs.snapshot import SnapshotConfig
from longtake.configs.tools import BenchConfig, DoctorConfig, PlanConfig, VerifyConfig

FILE_ONLY = ("prompt_template", "image_sha256")
"""What is too long for a flag, and can stand in a config file."""


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


_READ_FROM = "- reads it from standard input, @FILE from a file"


def _option(name: str, info: FieldInfo) -> tuple[str, Any, Any]:
    """One option of the command line. It stays a text: values are checked where it is declared."""
    given = "" if info.default is None or info.is_required() else f"(default: {info.default})"
    described: dict[str, Any] = {"help": info.description, "help_behavior_hint": given}
    if name == "prompt":
        described |= {"metavar": "PROMPT", "help": f"{info.description}; {_READ_FROM}"}
        prompt = tyro.conf.arg(**described)
        return name, Annotated[str | None, tyro.conf.Positional, prompt], field(default=None)
    if info.annotation is bool:
        return name, Annotated[bool, tyro.conf.arg(**described)], field(default=False)
    described["metavar"] = metavar_of(info.annotation)
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


def metavar_of(annotation: Any) -> str:
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


@dataclass(frozen=True)
class Version:
    """Print the version."""


def _command(name: str, *options: tuple[str, Any, Any]) -> Any:
    return make_dataclass(name.capitalize(), options)


COMMANDS: dict[str, tuple[Any, str]] = {
    "generate": (
        _command("generate", PROMPT, *_options_of("generate"), *OUTPUT, RESUME, *TALK, CONFIG),
        "Render a video from a prompt.",
    ),
    "batch": (
        _command("batch", *SHOTS, *_options_of("batch"), *TALK),
        "Render a file of shots; the same command again goes on.",
    ),
    "jobs": (
        _command("jobs", *JOBS, *TALK),
        "See, cancel or retry what a batch renders in a folder.",
    ),
    "serve": (
        _command("serve", *_options_of("serve"), *TALK),
        "Serve videos over HTTP, and a page.",
    ),
    "decode": (
        _command("decode", LATENTS, *_options_of("decode"), *OUTPUT, *TALK),
        "Make a video of latents in a file.",
    ),
    "plan": (
        _command("plan", *_options_of("plan"), *TALK),
        "Say how long a video will take and whether it fits, by layout.",
    ),
    "doctor": (
        _command("doctor", *_options_of("doctor"), *TALK),
        "Look at this machine, and say what is amiss.",
    ),
    "verify": (
        _command("verify", PROMPT, *_options_of("verify"), *TALK),
        "Compare what one rank renders with what each layout does.",
    ),
    "bench": (
        _command("bench", *_options_of("bench"), *TALK),
        "Measure this machine, or write its profile.",
    ),
    "version": (Version, "Print the version."),
}
"""What each command takes, and what it does."""
