"""What travels between an engine and its ranks: a job there, and what each measured of it back."""

from __future__ import annotations

from dataclasses import dataclass, field

from pydantic import BaseModel

from longtake.configs.request import ResolvedDecode, ResolvedRequest
from longtake.engine.media.snapshot import SnapshotPlan
from longtake.parallel import ParallelDims
from longtake.pipelines.trace import TraceRequest


class Job(BaseModel):
    """One request and the layout that it runs in; travels to the ranks as JSON.

    Attributes:
        from_latents: its latents are there already, and come beside it; it is only decoded.
        trace: what is recorded on the way, for a sink that takes it.
        snapshots: how it is kept on its way, so that it can go on from there.
        low_memory: decode with as little memory as can be: one tile at once, the other weights off
            the device.
    """

    request: ResolvedRequest | ResolvedDecode
    from_latents: bool = False
    trace: TraceRequest | None = None
    snapshots: SnapshotPlan | None = None
    low_memory: bool = False
    cfg_degree: int
    ring_degree: int
    ulysses_degree: int

    @classmethod
    def of(
        cls,
        request: ResolvedDecode,
        dims: ParallelDims,
        *,
        from_latents: bool = False,
        trace: TraceRequest | None = None,
    ) -> Job:
        """A job of a layout."""
        return cls(
            request=request,
            from_latents=from_latents,
            trace=trace,
            cfg_degree=dims.cfg_degree,
            ring_degree=dims.ring_degree,
            ulysses_degree=dims.ulysses_degree,
        )

    @property
    def from_picture(self) -> bool:
        """Whether the picture that its videos begin with comes beside it."""
        request = self.request
        animates = isinstance(request, ResolvedRequest) and request.i2v_mode is not None
        return animates and not self.from_latents

    @property
    def steps_before(self) -> int:
        """That an earlier rendering did, whose snapshot this one goes on from."""
        return 0 if self.snapshots is None else self.snapshots.steps_done

    @property
    def comes_with_array(self) -> bool:
        """Whether there is something beside it, on rank 0."""
        return self.from_latents or self.from_picture

    @property
    def decodes(self) -> bool:
        """Whether frames come of it, not latents alone."""
        request = self.request
        asks_for_latents = isinstance(request, ResolvedRequest) and request.output_type == "latents"
        return self.from_latents or not asks_for_latents

    @property
    def dims(self) -> ParallelDims:
        """The layout."""
        return ParallelDims(
            cfg_degree=self.cfg_degree,
            ring_degree=self.ring_degree,
            ulysses_degree=self.ulysses_degree,
        )


@dataclass
class RankReport:
    """What one rank measured in one rendering.

    Attributes:
        seconds: of each stage.
        bytes_sent: to other ranks, by stage.
        tiles_at_once: that it decoded at once, at most.
        peak_memory_bytes: of the GPU, or of the process; since it started.
        steps_before: that were done by an earlier rendering, whose snapshot this one went on from.
        snapshots: that it wrote.
        snapshot_failure: why one could not be written.
        truncated: prompts that were cut, by field: tokens "used" and "total"; of rank 0.
    """

    rank: int
    device: str
    attention_kernel: str
    seconds: dict[str, float]
    bytes_sent: dict[str, int]
    tiles_at_once: int
    peak_memory_bytes: int
    steps_before: int = 0
    snapshots: int = 0
    snapshot_failure: str = ""
    truncated: dict[str, dict[str, int]] = field(default_factory=dict)
