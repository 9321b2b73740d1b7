"""The rendering of one request to latents, as one rank sees it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from longtake.configs.request import ResolvedRequest
from longtake.parallel import ParallelDims, World
from longtake.pipelines.codec.picture import Pixels
from longtake.pipelines.family import VideoPipeline
from longtake.pipelines.runtime.progress import OnProgress, StopRequested, never
from longtake.pipelines.runtime.snapshots import LoopState, Snapshots
from longtake.pipelines.runtime.stages import StageReport
from longtake.pipelines.runtime.trace import Trace


@dataclass(frozen=True)
class RenderRun:
    """The rendering of one request to latents, as one rank sees it.

    Attributes:
        pipeline: The loaded model.
        request: The request, the same on all ranks.
        dims: The layout, the same on all ranks.
        world: All ranks.
        report: Receives the stages "text", "image" (with pictures only), "denoising" and
            "gathering".
        on_progress: Called on each rank.
        stop_requested: Polled between steps; if it returns true on any rank, all stop.
        trace: Records the latents after each step; None records nothing.
        pictures: On rank 0, the pictures by request field, ``[H, W, 3]`` of any size each.
        snapshots: Saves the state of the loop, on all ranks or none; rank 0 decides when.
        steps_done: Number of steps that a previous run of this request completed.
        state: On rank 0, the state of the loop after ``steps_done`` steps.
    """

    pipeline: VideoPipeline
    request: ResolvedRequest
    dims: ParallelDims
    world: World
    report: StageReport = field(default_factory=StageReport)
    on_progress: OnProgress = lambda progress: None
    stop_requested: StopRequested = never
    trace: Trace | None = None
    pictures: Mapping[str, Pixels] = field(default_factory=dict)
    snapshots: Snapshots | None = None
    steps_done: int = 0
    state: LoopState | None = None
