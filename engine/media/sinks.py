"""Where the output of a rendering goes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

from longtake.engine.media.arrays import Array

if TYPE_CHECKING:
    from longtake.pipelines.runtime.trace_points import TracePoint


class Sink(Protocol):
    """Receives the output of a rendering."""

    def latents(self, latents: Array) -> None:
        """Receive the latents of all videos, ``[B, C, F, H, W]``."""

    def frame(self, video: int, index: int, frame: Array) -> None:
        """Receive one frame, ``[height, width, 3]`` in [0, 1]. Frames arrive in order."""


@runtime_checkable
class TraceSink(Sink, Protocol):
    """Receives the output of a traced rendering."""

    def traced(self, point: TracePoint, values: Array) -> None:
        """Receive the values recorded at one point. Points arrive in the order of computation."""


class NullSink:
    """A sink that drops everything."""

    def latents(self, latents: Array) -> None:
        """Drop the latents."""

    def frame(self, video: int, index: int, frame: Array) -> None:
        """Drop the frame."""
