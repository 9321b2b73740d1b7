"""Where a rendering stands, as ranks say it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """Where a rendering stands.

    Attributes:
        phase: "loading", "text", "denoising", "decoding", "writing", or "waiting" for
            other ranks.
        done: steps or tiles that are finished; on a GPU, that the device has finished.
        total: of them; 0 where the phase has no parts.
        detail: e.g. which component is loading, or that it is the picture that is encoded.
    """

    phase: str
    done: int = 0
    total: int = 0
    detail: str = ""


OnProgress = Callable[[Progress], None]

StopRequested = Callable[[], bool]
"""Says whether a rendering is to stop."""


def never() -> bool:
    """Nothing is to stop."""
    return False
