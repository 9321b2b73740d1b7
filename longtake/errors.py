"""Every exception that longtake raises on purpose.

A message states the value that was refused, the rule that it breaks, and a way out.
"""

from __future__ import annotations

import typing

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


def one_line(error: BaseException) -> str:
    """What an exception says, on one line; of a validation error each field, value and rule."""
    details = getattr(error, "errors", None)
    if callable(details):
        found = list(details())
        # of a list with a wrong value pydantic also says that it is too short without it
        said = [detail for detail in found if detail["type"] != "too_short"] or found
        more = [f"and {len(said) - _MOST_SAID} more"] if len(said) > _MOST_SAID else []
        return "; ".join([_field_error(detail) for detail in said[:_MOST_SAID]] + more)
    words = " ".join(str(error).split())
    return words or type(error).__name__


def _field_error(detail: dict[str, typing.Any]) -> str:
    """One field's part of a pydantic validation error."""
    name = ".".join(map(str, detail["loc"])) or "value"
    if detail["type"] == "extra_forbidden":
        return f"{name} is not an option"
    if detail["type"] == "missing":
        return f"{name} is missing"
    rule = (
        detail["msg"].removeprefix("Value error, ").removeprefix("Input ").replace("should", "must")
    )
    if "key" in name:
        return f"{name} {rule}"  # a secret
    value = repr(detail["input"])
    return f"{name}={value if len(value) <= 60 else value[:57] + '...'} {rule}"
