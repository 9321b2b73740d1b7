"""The ranks of one engine from their start to their end, and whose turn it is to use them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from longtake.engine.launch.launcher import Launcher
from longtake.errors import RequestError
from longtake.pipelines.progress import OnProgress, Progress, StopRequested, never


class RankSession:
    """Ranks with a loaded model, started on first use and restarted after they have ended.

    Threads may share one: :meth:`exclusive` admits one at a time.

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

    def start(self, on_progress: OnProgress, stop_requested: StopRequested = never) -> Launcher:
        """Start the ranks and load the model, unless they are running.

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
                launcher.start(on_progress, stop_requested)
                self._launcher = launcher
                self.loading_s = time.perf_counter() - start
            return self._launcher

    @contextmanager
    def exclusive(
        self, on_progress: OnProgress, stop_requested: StopRequested = never
    ) -> Iterator[Launcher]:
        """Have the ranks to oneself, running. After an exception that ended them, none are left.

        Raises:
            RequestError: This thread is using them already: a callback renders.
            ModelError, RankError, Stopped: As :meth:`start`.
        """
        with self._lock:
            if self._in_use:
                raise RequestError("generate() was called by a callback of its own: let it return")
            launcher = self.start(on_progress, stop_requested)
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
