"""The commands and their options. Options that configs/ declares are derived from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from longtake.configs.commands.batch import BatchConfig
from longtake.configs.commands.serve import ServeConfig
from longtake.configs.commands.tools import BenchConfig, DoctorConfig, PlanConfig, VerifyConfig
from longtake.configs.commands.training import TrainingConfig
from longtake.configs.engine import PARTS, EngineConfig
from longtake.configs.families import (
    check_untaken,
    holds_mapping,
    installed_families,
    load_reference,
)
from longtake.configs.parallel import ParallelConfig
from longtake.configs.request import PICTURES, DecodeRequest, MergedOptions, VideoRequest
from longtake.configs.snapshot import SnapshotConfig

_FAMILY_OPTIONS = MergedOptions.model_fields
FILE_ONLY = (
    *(f"{name}_sha256" for name in (*PICTURES, "lora")),
    *(name for name, info in _FAMILY_OPTIONS.items() if holds_mapping(info)),
)
"""Fields of a request that a config file may set and the command line may not: digests, and
mappings."""

_NEVER = ("parallel", "output_type", "autoencoder_only", *FILE_ONLY)
"""Fields that the command line sets itself, or that a config file alone may set."""

_PATHS = ("output", "folder")
"""Fields that hold a path as text."""


@dataclass(frozen=True)
class Option:
    """One option or positional argument of a command.

    Attributes:
        name: Key in the parsed options.
        help: What it does, as ``--help`` prints it.
        metavar: Placeholder of the value in the help; empty for a switch.
        hint: The default in parentheses, as ``--help`` prints it; empty if there is none.
        default: Parsed value when the option is not given.
        long: Name behind the dashes; ``name`` with dashes if empty.
        short: One-letter form with its dash, if any.
        num_values: Number of values: 0 for a switch, None for any number.
        positional: Whether it is given by position, without a name.
        required: Whether the command refuses to run without it; positional arguments only.
        negatable: Whether a switch has a ``--no-`` form.
    """

    name: str
    help: str
    metavar: str = ""
    hint: str = ""
    default: Any = None
    long: str = ""
    short: str = ""
    num_values: int | None = 1
    positional: bool = False
    required: bool = False
    negatable: bool = False

    @property
    def flags(self) -> tuple[str, ...]:
        """All spellings, the long one first; empty for a positional argument."""
        if self.positional:
            return ()
        long = self.long or self.name.replace("_", "-")
        negated = (f"--no-{long}",) if self.negatable else ()
        return (f"--{long}", *negated, *((self.short,) if self.short else ()))


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        summary: What it does, in one sentence.
        options: Its options and positional arguments, in the order of the help.
        fields: Names of the options that configs/ declares.
    """

    summary: str
    options: tuple[Option, ...] = ()
    fields: frozenset[str] = frozenset()

    @property
    def flags(self) -> dict[str, Option]:
        """The named options by each of their spellings."""
        return {flag: option for option in self.options for flag in option.flags}


def _switch(name: str, help: str) -> Option:
    return Option(name, help, default=False, num_values=0)


# tyro has no argument that can be given both by position and by name.
_PROMPT = Option("prompt_option", "Same as PROMPT", "TEXT", long="prompt")
_OUTPUT = (
    Option(
        "output",
        "Output file: .mp4, .webm, .gif, .npy (float32 frames), .safetensors (latents; generate "
        "only), or a folder for PNG frames; may contain {seed}, {id}, {date}, {model} and {index}",
        "PATH",
        "(default: out.mp4; out-2.mp4 and so on if it exists)",
        short="-o",
    ),
    Option(
        "metadata",
        "Write a .json next to the video; --no-metadata also keeps prompt, seed and model out of "
        "the video file",
        hint="(default: True)",
        default=True,
        num_values=0,
        negatable=True,
    ),
    _switch("overwrite", "Replace an existing video and its .json"),
)
_RESUME = _switch(
    "resume",
    "Continue from the snapshot that an unfinished run of the same request left next to the output",
)
_CONFIG = Option(
    "config",
    "YAML file of options, overridden by flags; or the .json of a video, to render it again",
    "FILE",
)
_OUTPUT_MODE = (
    _switch("quiet", "Print only warnings and errors"),
    _switch("json", "Print JSON; progress is one event per line"),
)
_LATENTS = Option(
    "latents",
    "File of latents: written by generate -o x.safetensors, or kept when decoding failed",
    "LATENTS.safetensors",
    positional=True,
    required=True,
)
_SHOTS = (
    Option(
        "shots",
        "Shots to render: .jsonl or .csv, one row per shot, with id, output and any option of "
        "generate by name; .txt, one prompt per line; or .yaml with defaults, shots and product",
        "SHOTS",
        positional=True,
        required=True,
    ),
    Option(
        "outputs",
        "Folder for the videos, the job queue and the report",
        "FOLDER",
        long="output",
        short="-o",
    ),
)
_JOBS = (
    Option(
        "action",
        "show and cancel need ids; retry without ids retries every failed job",
        "list|show|cancel|retry",
        positional=True,
        required=True,
    ),
    Option("folder", "Output folder of the batch", "FOLDER", positional=True, required=True),
    Option("ids", "Job ids", "ID", default=(), num_values=None, positional=True),
)
_DOWNLOAD = (
    Option("model", "Preset or Hub id of a model", "MODEL", positional=True, required=True),
    _switch("dry_run", "Print the files and their sizes; download configuration files only"),
)
_INSPECT = (
    Option(
        "file",
        "LoRA; or file of weights, index of shards, or the folder of either",
        "FILE",
        positional=True,
        required=True,
    ),
    Option(
        "model",
        "Model that it should fit",
        "MODEL",
        "(default: every bundled model and preset)",
    ),
)


def _from_field(name: str, info: FieldInfo) -> Option:
    """The option of a declared field. Its value is text; the declaring class validates it."""
    hint = "" if info.is_required() or info.default in (None, ()) else f"(default: {info.default})"
    help = info.description or ""
    if name == "prompt":
        help += "; - reads it from standard input, @FILE from a file"
        return Option(name, help, "PROMPT", positional=True)
    if info.annotation is bool:
        return Option(name, help, hint=hint, num_values=0, negatable=True)
    return Option(
        name,
        help,
        "PATH" if name in _PATHS else _metavar(info.annotation),
        hint,
        short="-o" if name == "output" else "",
        num_values=_num_values(info.annotation),
    )


def _num_values(annotation: Any) -> int | None:
    text = str(annotation)
    if "tuple" not in text:
        return 1
    return None if "..." in text else 3


def _metavar(annotation: Any) -> str:
    for each in (annotation, *get_args(annotation)):
        if get_origin(each) is Literal:
            return "|".join(get_args(each))
    if _num_values(annotation) == 3:
        return "FRAMES HEIGHT WIDTH"
    kinds = (("bool", "true|false"), ("Path", "PATH"), ("float", "NUMBER"), ("int", "INT"))
    metavar = next((word for part, word in kinds if part in str(annotation)), "TEXT")
    return f"{metavar} ..." if _num_values(annotation) is None else metavar


def _fields(
    *configs: type[BaseModel], without: tuple[str, ...] = (), only: tuple[str, ...] | None = None
) -> dict[str, FieldInfo]:
    """The fields of the classes by name; each class's own come before inherited ones.

    Args:
        without: Names to leave out.
        only: Names to keep of the last class; all of them if None.
    """
    fields: dict[str, FieldInfo] = {}
    for config in configs:
        own = [name for name in config.model_fields if name in config.__annotations__]
        allowed = only if config is configs[-1] else None
        for name in [*own, *config.model_fields]:
            if name not in (*without, *_NEVER) and (allowed is None or name in allowed):
                fields[name] = config.model_fields[name]
    return fields


_RANKS = ("devices", "device")
_PICTURES = (*PICTURES, "resize_mode", "image_folder")
_LORAS = ("lora", "lora_partial", "lora_folder")
_NOT_PLANNED = (
    *("prompt", "negative_prompt", "sigmas", "flow_shift", "seed"),
    *("embed_metadata", "attention_kernel", "device", "device_ids", *_PICTURES, *_LORAS),
    *(name for name in EngineConfig.model_fields if name.endswith("_timeout_s")),
)
"""Fields without effect on the predicted time and memory."""
_NOT_DECODED = (
    *(name for name in PARTS if name != "vae"),
    *("attention_kernel", "weights", "text_weights", "storage_dtype", "image_folder"),
    "lora_folder",
    *("text_timeout_s", "step_timeout_s"),
)
_NOT_VERIFIED = (
    *DecodeRequest.model_fields,
    *("ulysses_degree", "ring_degree", "cfg_degree", "device_ids", "num_videos", "vae_dtype"),
    *_PICTURES,
    *_LORAS,
    "decode_timeout_s",
)
_ENGINE = (EngineConfig, ParallelConfig, SnapshotConfig)


def _command(
    summary: str,
    fields: dict[str, FieldInfo],
    *,
    before: tuple[Option, ...] = (),
    after: tuple[Option, ...] = (),
) -> Command:
    declared = tuple(_from_field(name, info) for name, info in fields.items())
    return Command(summary, (*before, *declared, *after), frozenset(fields))


def _check_families(*configs: type[BaseModel]) -> None:
    """Refuse a family whose option has the name of one of these classes' fields."""
    taken = {name for config in configs for name in config.model_fields}
    for family in installed_families().values():
        for name in load_reference(family.options).model_fields:
            check_untaken(name, family, taken)


_check_families(BatchConfig, ServeConfig, *_ENGINE)

COMMANDS: dict[str, Command] = {
    "generate": _command(
        "Render a video from a prompt.",
        _fields(VideoRequest, *_ENGINE),
        before=(_PROMPT,),
        after=(*_OUTPUT, _RESUME, *_OUTPUT_MODE, _CONFIG),
    ),
    "batch": _command(
        "Render a file of shots; run it again to continue.",
        _fields(BatchConfig, VideoRequest, *_ENGINE, without=("prompt",)),
        before=_SHOTS,
        after=_OUTPUT_MODE,
    ),
    "jobs": Command("List, show, cancel or retry the jobs of a batch.", (*_JOBS, *_OUTPUT_MODE)),
    "serve": _command(
        "Serve an HTTP API and a web page.",
        _fields(ServeConfig, *_ENGINE, without=("image_folder",)),
        after=_OUTPUT_MODE,
    ),
    "decode": _command(
        "Decode a file of latents into a video.",
        _fields(DecodeRequest, EngineConfig, without=_NOT_DECODED),
        before=(_LATENTS,),
        after=(*_OUTPUT, *_OUTPUT_MODE),
    ),
    "models": _command(
        "List the models: what they are, what is downloaded, what this machine can run.",
        {
            **_fields(PlanConfig, only=("gpu", "gpus_per_node")),
            **_fields(EngineConfig, only=("devices", "dtype")),
        },
        after=_OUTPUT_MODE,
    ),
    "download": _command(
        "Download the files of a model that are read, and check them.",
        _fields(EngineConfig, only=("revision", *PARTS)),
        before=_DOWNLOAD,
        after=_OUTPUT_MODE,
    ),
    "inspect": Command(
        "Say what a LoRA or a file of weights is, and what it would be applied to.",
        (*_INSPECT, *_OUTPUT_MODE),
    ),
    "plan": _command(
        "Predict the time and memory of a video, or of training a decoder, per layout.",
        _fields(
            *(PlanConfig, TrainingConfig, VideoRequest, EngineConfig, ParallelConfig),
            without=_NOT_PLANNED,
        ),
        after=_OUTPUT_MODE,
    ),
    "doctor": _command(
        "Check this machine and report problems.",
        _fields(DoctorConfig, EngineConfig, only=("model", *_RANKS)),
        after=_OUTPUT_MODE,
    ),
    "verify": _command(
        "Compare the latents of each layout with those of one rank.",
        _fields(VerifyConfig, VideoRequest, EngineConfig, ParallelConfig, without=_NOT_VERIFIED),
        before=(_PROMPT,),
        after=_OUTPUT_MODE,
    ),
    "bench": _command(
        "Measure this machine, or write its hardware profile.",
        _fields(BenchConfig, EngineConfig, only=("model", "dtype", *_RANKS)),
        after=_OUTPUT_MODE,
    ),
    "version": Command("Print the version."),
}
"""Every command by name, in the order of the help."""
