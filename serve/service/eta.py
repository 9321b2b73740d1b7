"""Estimates of rendering times: the planner's, scaled by measured times."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Protocol

from longtake.configs.request import ResolvedRequest
from longtake.engine.planning.prediction import Prediction
from longtake.errors import RefusedInputError
from longtake.pipelines.runtime.progress import Progress
from longtake.serve.queue.job_database import QueueError
from longtake.serve.queue.job_records import JobRecord
from longtake.serve.queue.submissions import Submissions
from longtake.serve.runner.stages import UNCOUNTED_STAGES

_SAMPLES = 20
_LONGEST_RETRY_S = 600.0
_DEFAULT_RETRY_S = 60.0


class StepProgress(Protocol):
    """The interface of :class:`longtake.serve.service.progress_hub.JobProgress` for estimates."""

    steps_done: int | None

    @property
    def step_s(self) -> float | None:
        """Mean seconds per step; None before the first measured step."""
        ...

    @property
    def latest(self) -> Progress:
        """The latest event."""
        ...


class ProgressSource(Protocol):
    """Source of the progress of running jobs."""

    def of_job(self, job: str) -> StepProgress | None:
        """Progress of a job; None if it is unknown."""
        ...


class EtaEstimator:
    """Planned times, multiplied by the median ratio of measured to planned time.

    The plan alone may be far too short, on a CPU for instance. So times are unknown until a video
    has been measured, or two steps of the running one.

    Args:
        predict: Returns the plan of a request; raises RefusedInputError if no layout fits.
        store: The job queue; its finished jobs are the first samples.
        progress: Progress of the running jobs.
        digest: Digest of the engine; jobs of other engines are not used as samples.
    """

    def __init__(
        self,
        predict: Callable[[ResolvedRequest], Prediction],
        store: Submissions,
        progress: ProgressSource,
        digest: str,
    ) -> None:
        self._predict = predict
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
        """Whether a video has been measured."""
        return bool(self._ratios)

    def add_sample(self, request: ResolvedRequest, seconds: Mapping[str, float]) -> None:
        """Add the measured times of a video that was rendered without interruption.

        Args:
            request: The video's request.
            seconds: Measured seconds by stage.
        """
        measured_s = sum(value for stage, value in seconds.items() if stage not in UNCOUNTED_STAGES)
        with suppress(RefusedInputError):  # the degrees may have changed since
            predicted_s = self._predict(request).rendering_s
            if measured_s > 0:
                self._ratios.append(measured_s / predicted_s)

    def rendering_s(self, request: ResolvedRequest) -> float:
        """Seconds that rendering a video takes; unscaled until a video has been measured."""
        return (self._median_ratio() or 1.0) * self._predict(request).rendering_s

    def current(self, job: JobRecord) -> tuple[Progress, int]:
        """The latest progress of an unfinished job, and its number of finished steps."""
        progress = self._running(job)
        if progress is None:
            return Progress(job.phase if job.state == "running" else ""), job.steps_done
        steps = job.steps_done if progress.steps_done is None else progress.steps_done
        return progress.latest, steps

    def seconds_left(self) -> dict[str, float]:
        """Seconds until each unfinished job is done, including all jobs before it, by job id.

        Jobs of unknown time are left out. So are those that are being cancelled or fit no layout;
        these two do not delay other jobs.
        """
        ratio, total, left_s = self._median_ratio(), 0.0, {}
        for job in self._in_order():
            try:
                stages = dict(self._predict(job.request).stages)
            except RefusedInputError:
                continue
            progress, own_ratio = self._running(job), None
            if progress is not None and progress.step_s is not None:
                denoising_s = progress.step_s * job.request.num_inference_steps
                own_ratio = denoising_s / stages["denoise"]
            ratio = ratio or own_ratio
            if ratio is None:
                break
            remaining = _remaining(stages, job.request, *self.current(job))
            total += (own_ratio or ratio) * remaining.pop("denoise")
            total += ratio * sum(remaining.values())
            left_s[job.id] = total
        return left_s

    def seconds_until_room(self) -> float:
        """Seconds until the first job is done, after which a full queue has room again."""
        left = min(self.seconds_left().values(), default=_DEFAULT_RETRY_S)
        return min(max(1.0, left), _LONGEST_RETRY_S)

    def _in_order(self) -> list[JobRecord]:
        """Unfinished jobs in the order of rendering, without those being cancelled."""
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
    """Planned seconds that remain of each stage."""
    left = {**stages, "load": 0.0}
    if now.phase not in ("", "loading", "text"):
        left["text"] = 0.0
    left["denoise"] *= 1 - steps_done / request.num_inference_steps
    if now.phase in ("decoding", "writing") and now.total:
        left["decode"] *= 1 - now.done / now.total
    return left
