"""Estimates of how long videos take: the planner's, scaled by measured times."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Protocol

from longtake.configs.request import ResolvedRequest
from longtake.errors import RefusedInputError
from longtake.pipelines.progress import Progress
from longtake.serve.queue.job_database import QueueError
from longtake.serve.queue.job_records import JobRecord
from longtake.serve.queue.submissions import Submissions
from longtake.serve.runner.stages import UNCOUNTED_STAGES

_SAMPLES = 20
_LONGEST_RETRY_S = 600.0
_DEFAULT_RETRY_S = 60.0


class StepProgress(Protocol):
    """The part of :class:`longtake.serve.service.progress_hub.JobProgress` that estimates need."""

    steps_done: int | None

    @property
    def step_s(self) -> float | None:
        """Mean seconds of a step; None before one was seen."""
        ...

    @property
    def latest(self) -> Progress:
        """The latest event."""
        ...


class ProgressSource(Protocol):
    """What knows the progress of running jobs."""

    def of_job(self, job: str) -> StepProgress | None:
        """Progress of a job; None if it is unknown."""
        ...


class EtaEstimator:
    """Planner estimates, multiplied by the median ratio of measured to planned times.

    The plan alone may be far too short, on a CPU for instance. So nothing is estimated before a
    video was timed or two steps of the running one were seen.

    Args:
        predict_stages: The planned seconds of each stage of a request, ``load`` among them; raises
            RefusedInputError if no layout fits.
        store: The job queue; its finished jobs are the first samples.
        progress: Progress of the running jobs.
        digest: Digest of the engine; jobs of other engines are no samples.
    """

    def __init__(
        self,
        predict_stages: Callable[[ResolvedRequest], Mapping[str, float]],
        store: Submissions,
        progress: ProgressSource,
        digest: str,
    ) -> None:
        self._predict_stages = predict_stages
        self._store = store
        self._progress = progress
        self._digest = digest
        self._ratios: deque[float] = deque(maxlen=_SAMPLES)
        jobs, _ = store.page(None, _SAMPLES, newest_first=True)
        for job in reversed(jobs):
            if job.engine == digest and job.state == "done" and job.claims == 1:
                self.add_sample(job.request, job.seconds)

    @property
    def known(self) -> bool:
        """Whether a video was timed."""
        return bool(self._ratios)

    def add_sample(self, request: ResolvedRequest, seconds: Mapping[str, float]) -> None:
        """Learn from a video that was rendered in one go.

        Args:
            request: The video's request.
            seconds: Measured seconds by stage.
        """
        measured_s = sum(value for stage, value in seconds.items() if stage not in UNCOUNTED_STAGES)
        with suppress(RefusedInputError):  # the degrees may have changed since
            predicted_s = self._predicted_s(request)
            if measured_s > 0:
                self._ratios.append(measured_s / predicted_s)

    def rendering_s(self, request: ResolvedRequest) -> float:
        """Seconds that a video takes once it starts; the plan's own until a video was timed."""
        return (self._median_ratio() or 1.0) * self._predicted_s(request)

    def current(self, job: JobRecord) -> tuple[Progress, int]:
        """The latest progress and the finished steps of a job that has not ended."""
        progress = self._running(job)
        if progress is None:
            return Progress(job.phase if job.state == "running" else ""), job.steps_done
        steps = job.steps_done if progress.steps_done is None else progress.steps_done
        return progress.latest, steps

    def seconds_left(self) -> dict[str, float]:
        """Seconds until each unfinished job is done, including all jobs before it, by job id.

        Jobs are missing whose time is not known yet, and those that are being cancelled or have
        no layout here; the latter two delay no other job.
        """
        ratio, total, found = self._median_ratio(), 0.0, {}
        for job in self._in_order():
            try:
                stages = dict(self._predict_stages(job.request))
            except RefusedInputError:
                continue
            progress, own_ratio = self._running(job), None
            if progress is not None and progress.step_s is not None:
                denoising_s = progress.step_s * job.request.num_inference_steps
                own_ratio = denoising_s / stages["denoise"]
            ratio = ratio or own_ratio
            if ratio is None:
                break
            left = _remaining(stages, job.request, *self.current(job))
            total += (own_ratio or ratio) * left.pop("denoise") + ratio * sum(left.values())
            found[job.id] = total
        return found

    def seconds_until_room(self) -> float:
        """Seconds after which a client may retry on a full queue: until the first job is done."""
        left = min(self.seconds_left().values(), default=_DEFAULT_RETRY_S)
        return min(max(1.0, left), _LONGEST_RETRY_S)

    def _predicted_s(self, request: ResolvedRequest) -> float:
        """Planned seconds of a video once the model is loaded."""
        stages = self._predict_stages(request)
        return sum(stages.values()) - stages["load"]

    def _in_order(self) -> list[JobRecord]:
        """Jobs in the order of rendering, without those that are being cancelled."""
        try:
            jobs = self._store.unfinished_jobs()
        except QueueError:
            return []
        return [job for job in jobs if job.engine == self._digest and not job.cancelling]

    def _running(self, job: JobRecord) -> StepProgress | None:
        return self._progress.of_job(job.id) if job.state == "running" else None

    def _median_ratio(self) -> float | None:
        return statistics.median(self._ratios) if self._ratios else None


def _remaining(
    stages: dict[str, float], request: ResolvedRequest, now: Progress, steps_done: int
) -> dict[str, float]:
    """Planned seconds of each stage that are left of a video."""
    left = {**stages, "load": 0.0}
    if now.phase not in ("", "loading", "text"):
        left["text"] = 0.0
    left["denoise"] *= 1 - steps_done / request.num_inference_steps
    if now.phase in ("decoding", "writing") and now.total:
        left["decode"] *= 1 - now.done / now.total
    return left
