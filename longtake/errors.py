"""The exceptions that longtake raises on purpose, and how messages are worded.

    LongtakeError                                       exit code   HTTP status
    ├── RefusedInputError (ValueError)                      2           400
    │   ├── LayoutError      degrees, ranks, meshes, token ranges
    │   ├── TensorError      shapes, dtypes, devices of tensors
    │   ├── KernelError      attention kernels
    │   ├── RequestError     requests, engine options, outputs
    │   └── ModelError       model folders and hub ids; models that cannot be split
    ├── EngineError (RuntimeError)                          3           503
    │   └── RankError        a rank died, hung or failed
    ├── PeerLostError (RuntimeError)                        3            -
    └── Stopped                                            130           -

RefusedInputError is raised before any work starts, so the same call can be repeated once the input
is corrected. EngineError leaves work unfinished. PeerLostError is raised on the ranks that survive;
the engine turns it into RankError. Any other exception is a bug, and exits with 3 as well.

Exceptions of a single package are declared in it: subclasses of ``RequestError`` for batch rows and
queue submissions (some with HTTP status 409 or 429), of ``EngineError`` for an unusable queue, and
of ``LongtakeError`` for an unusable snapshot and a lost claim, which no caller of longtake sees.

A message states the refused value, the rule that it breaks, and a way out:
``ring_degree=3 x ulysses_degree=2 needs 6 ranks, got 4: try ...``.
"""

from __future__ import annotations

import difflib
import re
import typing
from collections.abc import Iterable

_MAX_FIELD_ERRORS = 8
"""Field errors that one message lists."""


class LongtakeError(Exception):
    """The base of all exceptions that longtake raises on purpose."""


class RefusedInputError(LongtakeError, ValueError):
    """The input cannot be processed. Raised before any work starts or anything is sent."""


class LayoutError(RefusedInputError):
    """Degrees, ranks, a mesh or token ranges do not fit together."""


class TensorError(RefusedInputError):
    """The shape, dtype or device of a tensor does not fit the call."""


class KernelError(RefusedInputError):
    """An attention kernel is unknown or cannot run on this device."""


class RequestError(RefusedInputError):
    """A request, an engine option or an output path is invalid or cannot be satisfied."""


class ModelError(RefusedInputError):
    """A model cannot be loaded (missing, damaged, of an unknown kind), or cannot be split."""


class EngineError(LongtakeError, RuntimeError):
    """A rank died, hung or failed, or a file could not be written; the work is unfinished.

    Attributes:
        latents: ``[B, C, F, H, W]``, float32: the denoised latents, if decoding alone failed. Set
            by :meth:`VideoEngine.generate`; :meth:`VideoEngine.decode` takes them.
    """

    latents: typing.Any = None


class RankError(EngineError):
    """A rank died, hung or failed; all ranks of the engine have ended.

    Attributes:
        rank: The first rank that failed; None if unknown.
        phase: Its phase: "starting", or as in ``longtake.pipelines.runtime.progress.Progress``;
            empty if unknown.
        out_of_memory: Whether it ran out of memory.
    """

    rank: int | None = None
    phase: str = ""
    out_of_memory: bool = False


class Stopped(LongtakeError):
    """The user stopped the rendering; no rank is working on it any more.

    Attributes:
        terminated: Whether a signal other than SIGINT stopped it, such as a job scheduler's SIGTERM
            or the SIGHUP of a closed terminal.
    """

    terminated = False


class PeerLostError(LongtakeError, RuntimeError):
    """Another rank died, raised, or did not answer within the process group's timeout."""


def with_message(error: EngineError, text: str) -> EngineError:
    """A copy of an error with another message."""
    other = type(error)(text)
    other.__dict__.update(error.__dict__)
    return other


def one_line(error: BaseException, known: Iterable[str] = ()) -> str:
    """The message of an exception on one line; for a pydantic error, each field, value and rule.

    Args:
        error: Any exception.
        known: Valid field names, to suggest one for an unknown field.
    """
    details = getattr(error, "errors", None)
    if callable(details):
        found = list(details())
        # pydantic reports a list with an invalid value as too short as well
        listed = [detail for detail in found if detail["type"] != "too_short"] or found
        hidden = len(listed) - _MAX_FIELD_ERRORS
        more = [f"and {hidden} more"] if hidden > 0 else []
        return "; ".join([_field_error(each, known) for each in listed[:_MAX_FIELD_ERRORS]] + more)
    text = " ".join(str(error).split())
    return text or type(error).__name__


def leading_field(message: str) -> str:
    """The field that a message of :func:`one_line` starts with; empty if there is none."""
    named = re.match(r"(\w+)(?:\.[\w.]+)?(?:=| is )", message)
    return named[1] if named else ""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A suggestion to append to an error about an unknown word; empty if no known one is close."""
    names = {_normalized(name): name for name in known}
    own = _normalized(word)
    meant = _SYNONYMS.get(own, own)
    near = [meant] if meant in names else difflib.get_close_matches(own, names, 1, 0.6)
    return f": perhaps you meant {names[near[0]]}" if near else ""


def _normalized(word: str) -> str:
    return word.strip("-").lower().replace("-", "_")


_SYNONYMS = {
    synonym: name
    for name, synonyms in {
        "num_inference_steps": "steps num_steps sampling_steps sample_steps infer_steps",
        "num_frames": "frames n_frames frame_count video_length length",
        "seconds": "duration secs s",
        "fps": "frame_rate framerate rate",
        "guidance_scale": "guidance embedded_cfg_scale scale cfg cfg_scale",
        "flow_shift": "shift",
        "negative_prompt": "negative neg neg_prompt n_prompt",
        "prompt": "text p",
        "output": "out outfile output_path output_file save_path out_dir",
        "devices": "gpus num_gpus n_gpus nproc nproc_per_node num_devices",
        "device_ids": "gpu_ids cuda_visible_devices",
        "image": "input_image init_image image_path img picture first_frame first_image input i",
        "last_image": "last_frame end_frame end_image final_image",
        "model": "ckpt checkpoint model_path model_id pretrained m",
        "dtype": "precision torch_dtype",
        "size": "video_size",
        "resolution": "res",
        "aspect_ratio": "aspect ratio ar",
        "num_videos": "n_videos num_videos_per_prompt count",
        "ulysses_degree": "ulysses sp_degree ulysses_size",
        "ring_degree": "ring ring_size",
        "height": "h",
        "width": "w",
        "bfloat16": "bf16",
        "float16": "fp16 half",
        "float32": "fp32 float full",
        "cuda": "gpu",
        "generate": "render run gen create make",
        "batch": "shots",
        "jobs": "queue status",
        "serve": "server web ui api",
        "plan": "estimate",
        "doctor": "check diagnose",
        "models": "presets zoo",
        "download": "fetch pull",
        "inspect": "info identify",
        "bench": "benchmark",
        "list": "ls",
        "cancel": "stop kill rm delete",
        "retry": "restart requeue",
    }.items()
    for synonym in synonyms.split()
}
"""Names of options, values and commands in other programs, by longtake's name."""

_RULES = {
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "dict_type": "must map names to values",
    "finite_number": "must be a finite number",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "greater_than": "must be above {gt}",
    "greater_than_equal": "must be at least {ge}",
    "int_from_float": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_parsing_size": "must be a smaller number",
    "int_type": "must be a whole number",
    "invalid_key": "must map names to values",
    "less_than": "must be below {lt}",
    "less_than_equal": "must be at most {le}",
    "list_type": "must be a list",
    "model_type": "must map names to values",
    "none_required": "must be left out",
    "path_type": "must be a path",
    "string_pattern_mismatch": "must be written as {pattern}",
    "string_too_long": "must have at most {max_length} characters",
    "string_too_short": "must have at least {min_length} characters",
    "string_type": "must be text",
    "string_unicode": "is not UTF-8: write it in that encoding",
    "too_long": "must have at most {max_length} values, not {actual_length}",
    "too_short": "must have at least {min_length} values, not {actual_length}",
    "tuple_type": "must be a list",
    "value_error": "{error}",
}
"""Messages by the type of a pydantic error."""


def _field_error(detail: dict[str, typing.Any], known: Iterable[str]) -> str:
    """The message of one error of a pydantic ValidationError."""
    name, kind = ".".join(str(each) for each in detail["loc"] if each != "[key]"), detail["type"]
    if kind == "extra_forbidden":
        return f"{name} is not an option{did_you_mean(name, known)}"
    if kind == "missing":
        return f"{name} is missing"
    context = detail.get("ctx", {})
    if kind == "literal_error":
        rule = f"must be {context['expected'].replace(chr(39), '')}"
        rule += did_you_mean(str(detail["input"]), re.findall(r"'([^']*)'", context["expected"]))
    else:
        rule = _RULES.get(kind, "cannot be used").format(**context)
    if not name:
        return rule  # a rule of several fields names them
    if "key" in name:
        return f"{name} {rule}"  # never print a secret
    return f"{name}={shorten(detail['input'])} {rule}"


def shorten(value: object) -> str:
    """A value for an error message: shortened, and as bytes if it is not UTF-8."""
    text = re.sub(r"\s*\n\s*", " ", repr(value))
    if isinstance(value, str) and not is_utf8(value):
        text = repr(original_bytes(value))[1:]
    return text if len(text) <= 60 else text[:57] + "..."


def original_bytes(text: str) -> bytes:
    """The undecodable bytes behind a text that Python decoded with surrogateescape."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace")


def is_utf8(text: str) -> bool:
    """Whether a text can be encoded in UTF-8: undecodable bytes become surrogates, which cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
