"""State of a server's ranks."""

from __future__ import annotations

from typing import Protocol


class RunningEngine(Protocol):
    """An engine that knows whether its ranks run."""

    @property
    def running(self) -> bool:
        """Whether the ranks were started and none has ended."""
        ...


class SupervisedRanks(Protocol):
    """The interface of :class:`longtake.engine.supervisor.Supervisor` for their state."""

    starts: int

    @property
    def engine(self) -> RunningEngine:
        """The current engine."""
        ...

    @property
    def devices(self) -> tuple[int, ...]:
        """Numbers of the devices in use."""
        ...


class RanksState:
    """State of the ranks. The render loop writes it; any thread may read it.

    Attributes:
        failure: Why the model cannot be loaded; None if no permanent error is known.
    """

    def __init__(self) -> None:
        self.failure: Exception | None = None
        self._current: SupervisedRanks | None = None
        self._earlier_starts = 0

    def replace(self, ranks: SupervisedRanks | None) -> None:
        """Switch to another group of ranks. Starts of earlier groups still count."""
        self._earlier_starts += 0 if self._current is None else self._current.starts
        self._current = ranks

    @property
    def loaded(self) -> bool:
        """Whether the model is loaded on running ranks."""
        return self._current is not None and self._current.engine.running

    @property
    def devices(self) -> tuple[int, ...] | None:
        """Numbers of the devices in use; None before the ranks are started."""
        return None if self._current is None else self._current.devices

    @property
    def restarts(self) -> int:
        """Number of starts of the ranks after the first."""
        starts = 0 if self._current is None else self._current.starts
        return max(0, self._earlier_starts + starts - 1)
