"""Interfaces of the ranks that render jobs."""

from __future__ import annotations

from typing import Protocol

from longtake.configs.engine import EngineConfig
from longtake.configs.request import ResolvedRequest
from longtake.engine.media.identity import Identity
from longtake.engine.media.sinks import Sink
from longtake.engine.media.snapshot import SnapshotPlan
from longtake.engine.metadata import Metadata
from longtake.pipelines.runtime.progress import OnProgress, StopRequested


class RenderEngine(Protocol):
    """The interface of :class:`longtake.engine.engine.VideoEngine` for rendering jobs."""

    @property
    def config(self) -> EngineConfig:
        """The engine's configuration, with resolved dtypes."""
        ...

    @property
    def running(self) -> bool:
        """Whether the ranks were started and none has ended."""
        ...

    def num_frames_of(self, request: ResolvedRequest) -> int:
        """Number of frames of each video."""
        ...

    def identity_of(self, request: ResolvedRequest) -> Identity:
        """Everything that the latents depend on."""
        ...


class Ranks(Protocol):
    """The interface of :class:`longtake.engine.supervisor.Supervisor` for rendering jobs.

    Attributes:
        starts: Number of starts of the ranks.
    """

    starts: int

    @property
    def engine(self) -> RenderEngine:
        """The current engine."""
        ...

    @property
    def devices(self) -> tuple[int, ...]:
        """Numbers of the devices in use."""
        ...

    def start(self, on_progress: OnProgress, stop_requested: StopRequested) -> None:
        """Start the ranks unless they run."""
        ...

    def render(
        self,
        request: ResolvedRequest,
        sink: Sink,
        on_progress: OnProgress,
        *,
        snapshots: SnapshotPlan | None,
        low_memory: bool,
        stop_requested: StopRequested,
    ) -> Metadata:
        """Render a request once."""
        ...

    def close(self) -> None:
        """End the ranks."""
        ...
