"""How long videos take here: the plan's word, and what was measured since."""

from __future__ import annotations

import statistics
from collections import deque
from contextlib import suppress

from longtake.configs.request import ResolvedRequest
from longtake.engine.engine import VideoEngine
from longtake.errors import RefusedInputError
from longtake.pipelines.progress import Progress
from longtake.serve.queue.job_database import QueueError
from longtake.serve.queue.job_records import JobRecord
from longtake.serve.queue.submissions import Submissions
from longtake.serve.runner.replica import NOT_OF_ONE
from longtake.serve.service.progress_hub import Course, ProgressHub

_LAST = 20
_LONGEST_RETRY_S = 600.0
_UNKNOWN_RETRY_S = 60.0


class EtaEstimator:
    """The planner's estimates, scaled by how long the last videos took beside theirs.

    The plan alone may be many times too short, on a CPU say: until a video was timed, or steps of
    the one that runs, it is not known how long videos take.

    Args:
        engine: that predicts.
        store: of jobs, some of which may be done.
        live: knows how those that run get on.
        digest: of the engine; jobs of others say nothing.
    """

    def __init__(
        self, engine: VideoEngine, store: Submissions, live: ProgressHub, digest: str
    ) -> None:
        self._layouts = engine.layouts
        self._store = store
        self._live = live
        self._digest = digest
        self._ratios: deque[float] = deque(maxlen=_LAST)
        jobs, _ = store.page(None, _LAST, newest_first=True)
        for job in reversed(jobs):
            if job.engine == digest and job.state == "done" and job.claims == 1:
                self.took(job.request, job.seconds)

    @property
    def known(self) -> bool:
        """Whether a video was timed."""
        return bool(self._ratios)

    def took(self, request: ResolvedRequest, seconds: dict[str, float]) -> None:
        """A video took so long, by stage."""
        took = sum(value for stage, value in seconds.items() if stage not in NOT_OF_ONE)
        with suppress(RefusedInputError):  # other degrees are asked for since
            predicted_s = self._layouts.predicted(request).rendering_s
            if took > 0:
                self._ratios.append(took / predicted_s)

    def seconds_of(self, request: ResolvedRequest) -> float:
        """How long one will take, once it is begun; by the plan alone until one was timed."""
        return (self._measured() or 1.0) * self._layouts.predicted(request).rendering_s

    def standing(self, job: JobRecord) -> tuple[Progress, int]:
        """Where a job that has not ended stands, and its finished steps, as far as is known."""
        course = self._course(job)
        if course is not None:
            done = job.steps_done if course.steps_done is None else course.steps_done
            return course.now, done
        return Progress(job.phase if job.state == "running" else ""), job.steps_done

    def seconds_left(self) -> dict[str, float]:
        """How long it will take until jobs are done, each after those before it, by their ids.

        A job is not among them if that is not known yet, if it is to end, or if it has no layout
        here; of these the last two keep no other waiting.
        """
        ratio, total, found = self._measured(), 0.0, {}
        for job in self._in_order():
            try:
                stages = dict(self._layouts.predicted(job.request).stages)
            except RefusedInputError:
                continue
            course, own = self._course(job), None
            if course is not None and course.step_s is not None:
                own = course.step_s * job.request.num_inference_steps / stages["denoise"]
            ratio = ratio or own
            if ratio is None:
                break
            left = _remaining(stages, job.request, *self.standing(job))
            total += (own or ratio) * left.pop("denoise") + ratio * sum(left.values())
            found[job.id] = total
        return found

    def seconds_until_room(self) -> float:
        """When to ask again, once all wait that may: the first that is done makes room."""
        left = min(self.seconds_left().values(), default=_UNKNOWN_RETRY_S)
        return min(max(1.0, left), _LONGEST_RETRY_S)

    def _in_order(self) -> list[JobRecord]:
        """Jobs in the order in which they will be done, without those that are to end."""
        try:
            jobs = self._store.unfinished_jobs()
        except QueueError:
            return []
        return [job for job in jobs if job.engine == self._digest and not job.cancelling]

    def _course(self, job: JobRecord) -> Course | None:
        return self._live.course(job.id) if job.state == "running" else None

    def _measured(self) -> float | None:
        return statistics.median(self._ratios) if self._ratios else None


def _remaining(
    stages: dict[str, float], request: ResolvedRequest, now: Progress, steps_done: int
) -> dict[str, float]:
    """Seconds of each stage that are left of a video, by the plan."""
    left = {**stages, "load": 0.0}
    if now.phase not in ("", "loading", "text"):
        left["text"] = 0.0
    left["denoise"] *= 1 - steps_done / request.num_inference_steps
    if now.phase in ("decoding", "writing") and now.total:
        left["decode"] *= 1 - now.done / now.total
    return left
