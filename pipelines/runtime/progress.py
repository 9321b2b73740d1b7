"""Progress of a rendering, as reported by ranks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """Progress of a rendering.

    Attributes:
        phase: One of "loading", "text", "denoising", "decoding", "writing", or "waiting" for
            other ranks; of a download, "downloading" or "checking".
        done: Number of completed steps, tiles or bytes; on a GPU, completed by the device.
        total: Number of steps, tiles or bytes; 0 if the phase has none.
        detail: Details of the phase, such as the component being loaded.
    """

    phase: str
    done: int = 0
    total: int = 0
    detail: str = ""


OnProgress = Callable[[Progress], None]

StopRequested = Callable[[], bool]
"""Returns whether the rendering should stop."""


def never() -> bool:
    """Never request a stop."""
    return False
