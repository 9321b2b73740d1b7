"""State of a server's ranks."""

from __future__ import annotations

from longtake.serve.runner.ranks import Ranks


class RanksState:
    """State of the ranks. The render loop writes it; any thread may read it.

    Attributes:
        failure: Why the model cannot be loaded; None if no permanent error is known.
    """

    def __init__(self) -> None:
        self.failure: Exception | None = None
        self._current: Ranks | None = None
        self._earlier_starts = 0

    def replace(self, ranks: Ranks | None) -> None:
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
