"""The unit of work of an engine's ranks: a request in a layout, and one run of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt
from pydantic import BaseModel

from longtake import errors
from longtake.configs.request import ResolvedDecode, ResolvedRequest
from longtake.engine.media.sinks import Sink
from longtake.engine.media.snapshot import SnapshotPlan
from longtake.errors import RefusedInputError
from longtake.parallel import ParallelDims
from longtake.pipelines.runtime.progress import OnProgress, StopRequested, never
from longtake.pipelines.runtime.trace_points import TraceRequest

LATENTS = "latents"
JobInputs = Mapping[str, npt.NDArray[Any]]
"""The arrays that a job needs on rank 0, by name: ``latents``, ``[B, C, F, H, W]`` in float32, or
pictures by request field, ``[H, W, 3]`` in uint8. Empty for most jobs."""

NO_INPUTS: JobInputs = {}


class Job(BaseModel):
    """One request for the ranks, and the layout they render it in. Sent to them as JSON.

    Attributes:
        request: What to render or decode.
        inputs: Names of the job's inputs.
        trace: What to record while rendering; None records nothing.
        snapshots: How to save snapshots and which one to resume from; None saves none.
        low_memory: Whether to decode one tile at a time with the other weights off the device.
        cfg_degree: Degree of the layout's cfg axis.
        ring_degree: Degree of the layout's ring axis.
        ulysses_degree: Degree of the layout's Ulysses axis.
    """

    request: ResolvedRequest | ResolvedDecode
    inputs: tuple[str, ...] = ()
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
        inputs: Iterable[str] = (),
        trace: TraceRequest | None = None,
    ) -> Job:
        """A job for a request in a layout."""
        return cls(
            request=request,
            inputs=tuple(inputs),
            trace=trace,
            cfg_degree=dims.cfg_degree,
            ring_degree=dims.ring_degree,
            ulysses_degree=dims.ulysses_degree,
        )

    @property
    def from_latents(self) -> bool:
        """Whether the job only decodes latents, which are its input."""
        return LATENTS in self.inputs

    @property
    def steps_before(self) -> int:
        """Steps that are already done in the snapshot this job resumes from."""
        return 0 if self.snapshots is None else self.snapshots.steps_done

    @property
    def decodes(self) -> bool:
        """Whether the job produces frames, not just latents."""
        request = self.request
        latents_only = isinstance(request, ResolvedRequest) and request.output_type == "latents"
        return self.from_latents or not latents_only

    @property
    def dims(self) -> ParallelDims:
        """The layout."""
        return ParallelDims(
            cfg_degree=self.cfg_degree,
            ring_degree=self.ring_degree,
            ulysses_degree=self.ulysses_degree,
        )


@dataclass(frozen=True)
class JobRun:
    """One run of a job on a set of ranks.

    Attributes:
        job: The job, the same on all ranks.
        sink: Receives the output, on rank 0; a :class:`TraceSink` if the job is traced.
        on_progress: Called as ranks make progress.
        inputs: The job's inputs, on rank 0.
        stop_requested: Polled; once true on any rank, all ranks stop.
    """

    job: Job
    sink: Sink
    on_progress: OnProgress = lambda progress: None
    inputs: JobInputs = field(default_factory=dict)
    stop_requested: StopRequested = never


def refusal_of(type_name: str, message: str) -> RefusedInputError:
    """The refusal of another process, with its type restored."""
    refusal: RefusedInputError = getattr(errors, type_name, RefusedInputError)(message)
    return refusal
