"""Every exception that longtake raises on purpose.

A message states the value that was refused, the rule that it breaks, and a way out.
"""

from __future__ import annotations

import difflib
import re
import typing
from collections.abc import Iterable

_MOST_SAID = 8
"""Fields that one message names."""


class LongtakeError(Exception):
    """Anything that longtake raises on purpose."""


class RefusedInputError(LongtakeError, ValueError):
    """What was asked for cannot run. Raised before any work starts or anything is sent."""


class LayoutError(RefusedInputError):
    """Degrees, ranks, a mesh or token ranges that do not fit together."""


class TensorError(RefusedInputError):
    """A tensor whose shape, dtype or device does not fit the call."""


class KernelError(RefusedInputError):
    """An attention kernel that is unknown or cannot run here."""


class RequestError(RefusedInputError):
    """A video, an engine or an output that was asked for and cannot be had."""


class ModelError(RefusedInputError):
    """A model's folder or hub id that cannot be loaded: missing, damaged, or of an unknown kind."""


class EngineError(LongtakeError, RuntimeError):
    """A rank died, hung or failed, or a file could not be written: what was begun is not done.

    Attributes:
        latents: ``[B, C, F, H, W]``, float32, where denoising was done and decoding was not; from
            :meth:`VideoEngine.generate`, and for :meth:`VideoEngine.decode`.
    """

    latents: typing.Any = None


class RankError(EngineError):
    """A rank died, hung or failed; all ranks of the engine have been ended.

    Attributes:
        rank: the first, as far as it is known.
        phase: in which it was, as :class:`longtake.pipelines.progress.Progress` names them, or
            "starting"; empty where it is not known.
        out_of_memory: that it ran out of memory.
    """

    rank: int | None = None
    phase: str = ""
    out_of_memory: bool = False


class Stopped(LongtakeError):
    """The user stopped it; all ranks have ended what they did.

    Attributes:
        terminated: by a signal that is not Ctrl-C, of a job scheduler or a closed terminal, say.
    """

    terminated = False


class PeerLostError(LongtakeError, RuntimeError):
    """Another rank died, raised, or did not answer within the process group's timeout."""


def restated(error: EngineError, text: str) -> EngineError:
    """The same error, in other words."""
    other = type(error)(text)
    other.__dict__.update(error.__dict__)
    return other


def one_line(error: BaseException, known: Iterable[str] = ()) -> str:
    """What an exception says, on one line; of a validation error each field, value and rule.

    Args:
        known: names of the fields that there are, one of which an unknown one may mean.
    """
    details = getattr(error, "errors", None)
    if callable(details):
        found = list(details())
        # of a list with a wrong value pydantic also says that it is too short without it
        said = [detail for detail in found if detail["type"] != "too_short"] or found
        more = [f"and {len(said) - _MOST_SAID} more"] if len(said) > _MOST_SAID else []
        return "; ".join([_field_error(each, known) for each in said[:_MOST_SAID]] + more)
    words = " ".join(str(error).split())
    return words or type(error).__name__


def field_named(message: str) -> str:
    """The field that a message of :func:`one_line` or of the engine begins with; empty if none."""
    named = re.match(r"(\w+)(?:\.[\w.]+)?(?:=| is )", message)
    return named[1] if named else ""


def nearly(word: str, known: Iterable[str]) -> str:
    """What may be meant by a word that is not known, to be put behind an error; empty if nothing
    is near."""
    names = {_spelled(name): name for name in known}
    meant = _ALSO_CALLED.get(_spelled(word), _spelled(word))
    near = [meant] if meant in names else difflib.get_close_matches(_spelled(word), names, 1, 0.6)
    return f": perhaps you meant {names[near[0]]}" if near else ""


def _spelled(word: str) -> str:
    return word.strip("-").lower().replace("-", "_")


_ALSO_CALLED = {
    also: name
    for name, others in {
        "num_inference_steps": "steps num_steps sampling_steps sample_steps infer_steps",
        "num_frames": "frames n_frames frame_count video_length length",
        "seconds": "duration secs s",
        "fps": "frame_rate framerate rate",
        "true_cfg_scale": "cfg cfg_scale true_cfg",
        "guidance_scale": "guidance embedded_cfg_scale scale",
        "flow_shift": "shift",
        "negative_prompt": "negative neg neg_prompt n_prompt",
        "prompt": "text p",
        "output": "out outfile output_path output_file save_path out_dir",
        "devices": "gpus num_gpus n_gpus nproc nproc_per_node num_devices",
        "device_ids": "gpu_ids cuda_visible_devices",
        "image": "input_image init_image image_path img picture first_frame input i",
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
        "bench": "benchmark",
        "list": "ls",
        "cancel": "stop kill rm delete",
        "retry": "restart requeue",
    }.items()
    for also in others.split()
}
"""What other programs call it."""

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
"""In our words, what pydantic says by these names."""


def _field_error(detail: dict[str, typing.Any], known: Iterable[str]) -> str:
    """One field's part of a pydantic validation error."""
    name, kind = ".".join(str(each) for each in detail["loc"] if each != "[key]"), detail["type"]
    if kind == "extra_forbidden":
        return f"{name} is not an option{nearly(name, known)}"
    if kind == "missing":
        return f"{name} is missing"
    context = detail.get("ctx", {})
    if kind == "literal_error":
        rule = f"must be {context['expected'].replace(chr(39), '')}"
        rule += nearly(str(detail["input"]), re.findall(r"'([^']*)'", context["expected"]))
    else:
        rule = _RULES.get(kind, "cannot be used").format(**context)
    if not name:
        return rule  # of several fields, which it names
    if "key" in name:
        return f"{name} {rule}"  # a secret
    return f"{name}={shown(detail['input'])} {rule}"


def shown(value: object) -> str:
    """A value in an error: short, and its bytes where it is not UTF-8."""
    words = re.sub(r"\s*\n\s*", " ", repr(value))
    if isinstance(value, str) and not is_utf8(value):
        words = repr(in_bytes(value))[1:]
    return words if len(words) <= 60 else words[:57] + "..."


def in_bytes(text: str) -> bytes:
    """The bytes that a text came of, which are not UTF-8."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace")


def is_utf8(text: str) -> bool:
    """Whether a text came of bytes in UTF-8, and can be written in it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
