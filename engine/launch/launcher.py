"""The interface of whatever starts ranks. What a rank executes is in
:mod:`longtake.engine.worker`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from longtake.engine.job import Job, JobRun
from longtake.engine.loras.choice import NO_LORAS, LoraChoice
from longtake.engine.rank_report import RankReport
from longtake.errors import RefusedInputError
from longtake.pipelines.runtime.progress import OnProgress, StopRequested, never


class Launcher(ABC):
    """Ranks with a loaded model. Creating one starts nothing; :meth:`start` starts the ranks."""

    @abstractmethod
    def start(
        self,
        on_progress: OnProgress,
        stop_requested: StopRequested = never,
        loras: LoraChoice = NO_LORAS,
    ) -> None:
        """Start the ranks and load the model.

        Args:
            on_progress: Called as components are loaded.
            stop_requested: Polled; once true, loading stops.
            loras: LoRAs of the first job, fused while loading. Those of rank 0 count.

        Raises:
            ModelError: The model cannot be loaded.
            RankError: A rank died or hung; all ranks have ended.
            Stopped: ``stop_requested`` returned true; all ranks have ended.
        """

    def agree(self, job: Job | None, refusal: RefusedInputError | None = None) -> Job:
        """The job that all ranks will render. Every caller of a distributed launcher calls this.

        Args:
            job: This caller's job; None if it has none of its own.
            refusal: Why this caller refuses the job. Rank 0's refusal is raised on all ranks.
        """
        if refusal is not None:
            raise refusal
        assert job is not None
        return job

    @abstractmethod
    def render(self, run: JobRun) -> list[RankReport]:
        """Render a job. Ranks in other processes that do not stop within ``stop_timeout_s`` are
        killed.

        Returns:
            What each rank measured, by rank.

        Raises:
            RefusedInputError: The job cannot run; the ranks can take another one if :attr:`alive`.
            Stopped: ``run.stop_requested`` returned true; likewise.
            RankError: A rank died or hung; all ranks have ended.
            Exception: Whatever the sink or ``on_progress`` raised; all ranks have stopped.
        """

    @property
    def alive(self) -> bool:
        """Whether the ranks can take another job."""
        return True

    @abstractmethod
    def close(self) -> None:
        """End all ranks."""
