"""The ranks of one engine from their start to their end, and which of its jobs they run."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from longtake.engine.job import NO_INPUTS, Job, JobInputs, JobRun
from longtake.engine.launch.launcher import Launcher
from longtake.engine.loras.choice import NO_LORAS, LoraChoice
from longtake.engine.media.sinks import Sink
from longtake.engine.rank_report import RankReport
from longtake.errors import RefusedInputError, RequestError
from longtake.pipelines.runtime.progress import OnProgress, Progress, StopRequested, never


class RankSession:
    """Ranks with a loaded model, started on first use and restarted after they have ended.

    Threads may share one: their jobs run one after the other.

    Args:
        new_launcher: Makes a launcher; called for each start.

    Attributes:
        loading_s: Seconds that the last start took.
    """

    def __init__(self, new_launcher: Callable[[], Launcher]) -> None:
        self._new_launcher = new_launcher
        self._launcher: Launcher | None = None
        self._lock = threading.RLock()
        self._in_use = False
        self.loading_s = 0.0

    @property
    def running(self) -> bool:
        """Whether ranks were started and none is known to have ended."""
        return self._launcher is not None

    def start(
        self,
        on_progress: OnProgress,
        stop_requested: StopRequested = never,
        loras: LoraChoice = NO_LORAS,
    ) -> Launcher:
        """Start the ranks and load the model, unless they are running; see :meth:`Launcher.start`.

        Raises:
            ModelError: The weights do not fit the architecture.
            RankError: A rank died or hung.
            Stopped: ``stop_requested`` returned true.
        """
        with self._lock:
            if self._launcher is None:
                start = time.perf_counter()
                launcher = self._new_launcher()
                on_progress(Progress("loading"))
                launcher.start(on_progress, stop_requested, loras)
                self._launcher = launcher
                self.loading_s = time.perf_counter() - start
            return self._launcher

    def run(
        self,
        prepare: Callable[[], tuple[Job | None, JobInputs]],
        sink: Sink,
        on_progress: OnProgress,
        stop_requested: StopRequested = never,
        loras: LoraChoice = NO_LORAS,
    ) -> tuple[Job, list[RankReport]]:
        """Start the ranks if need be, agree with all of them on a job, and run it.

        Args:
            prepare: Makes the job and its inputs. Rank 0's counts; other ranks of
                torchrun may return None.
            sink: Receives latents and frames, on rank 0.
            on_progress: Called as ranks finish steps.
            stop_requested: Polled; once true, all ranks stop.
            loras: LoRAs of the job, which ranks that must be started load at once.

        Returns:
            The job, and what each rank measured.

        Raises:
            RefusedInputError: Raised by ``prepare`` on rank 0, or by all ranks; they stay usable.
            RankError, Stopped: As :meth:`Launcher.render`.
        """
        with self._exclusive(on_progress, stop_requested, loras) as launcher:
            job: Job | None = None
            inputs: JobInputs = NO_INPUTS
            refusal: RefusedInputError | None = None
            try:
                job, inputs = prepare()
            except RefusedInputError as error:
                refusal = error
            agreed = launcher.agree(job, refusal)
            run = JobRun(agreed, sink, on_progress, inputs, stop_requested)
            return agreed, launcher.render(run)

    def refuse(self, refusal: RefusedInputError, on_progress: OnProgress) -> None:
        """Have all ranks of torchrun raise rank 0's refusal, this one included."""
        with self._exclusive(on_progress) as launcher:
            launcher.agree(None, refusal)

    @contextmanager
    def _exclusive(
        self,
        on_progress: OnProgress,
        stop_requested: StopRequested = never,
        loras: LoraChoice = NO_LORAS,
    ) -> Iterator[Launcher]:
        """The running ranks, for one thread at a time. They are closed if an exception ended them.

        Raises:
            RequestError: A callback of a rendering on these ranks renders.
            ModelError, RankError, Stopped: As :meth:`start`.
        """
        with self._lock:
            if self._in_use:
                raise RequestError("generate() was called from its own callback: let it return")
            launcher = self.start(on_progress, stop_requested, loras)
            self._in_use = True
            try:
                yield launcher
            except BaseException:
                if not launcher.alive:
                    self.close()
                raise
            finally:
                self._in_use = False

    def close(self) -> None:
        """End the ranks, which releases the model. The next :meth:`start` starts others."""
        with self._lock:
            launcher, self._launcher = self._launcher, None
            if launcher is not None:
                launcher.close()
