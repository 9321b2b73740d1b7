"""How long videos take here: the plan's word, and what was measured since."""

from __future__ import annotations

import statistics
from collections import deque
from contextlib import suppress

from longtake.configs.request import ResolvedRequest
from longtake.engine.engine import VideoEngine
from longtake.engine.submissions import Submissions
from longtake.errors import RefusedInputError
from longtake.pipelines.progress import Progress

_LAST = 20


class Pace:
    """The planner's estimates, scaled by how long the last videos took beside theirs.

    Args:
        engine: that predicts.
        store: of jobs, some of which may be done.
        digest: of the engine; jobs of others say nothing.
    """

    def __init__(self, engine: VideoEngine, store: Submissions, digest: str) -> None:
        self._layouts = engine.layouts
        self._ratios: deque[float] = deque(maxlen=_LAST)
        jobs, _ = store.page(None, _LAST, newest_first=True)
        for job in reversed(jobs):
            if job.engine == digest and job.state == "done" and job.claims == 1:
                self.took(job.request, sum(job.seconds.values()))

    @property
    def _ratio(self) -> float:
        return statistics.median(self._ratios) if self._ratios else 1.0

    def took(self, request: ResolvedRequest, seconds: float) -> None:
        """A video took so long."""
        with suppress(RefusedInputError):  # other degrees are asked for since
            predicted_s = self._layouts.predicted(request).rendering_s
            if seconds > 0:
                self._ratios.append(seconds / predicted_s)

    def seconds_of(self, request: ResolvedRequest) -> float:
        """How long one will take, once it is begun."""
        return self._ratio * self._layouts.predicted(request).rendering_s

    def seconds_left(
        self, request: ResolvedRequest, now: Progress, steps_done: int
    ) -> float | None:
        """How long a video will take from now on; None if it has no layout here.

        Args:
            now: where it stands; of one that waits, nowhere.
            steps_done: of its denoising.
        """
        try:
            stages = dict(self._layouts.predicted(request).stages)
        except RefusedInputError:
            return None
        del stages["load"]
        if now.phase not in ("", "loading", "text"):
            stages["text"] = 0.0
        stages["denoise"] *= 1 - steps_done / request.num_inference_steps
        if now.phase in ("decoding", "writing") and now.total:
            stages["decode"] *= 1 - now.done / now.total
        return self._ratio * sum(stages.values())
