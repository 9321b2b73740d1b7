"""Handling of SIGINT, SIGTERM and SIGHUP, however many arrive and at any moment."""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any, NoReturn

from longtake.errors import Stopped

EXIT_STOPPED = 130

_MARGIN_S = 10.0
"""Time for closing files and queues once the ranks have stopped or were killed."""
_REPEAT_S = 1.0
"""A signal this long after the first one counts as a second one."""
_QUIT = b"\0"
"""Written to the pipe to end the watching thread."""


class Interrupted(KeyboardInterrupt):
    """Raised in the main thread by the first signal.

    Attributes:
        terminated: Whether the signal is not Ctrl-C; see :class:`longtake.errors.Stopped`.
        again: Whether a second signal followed, one second later or more. Ranks are then killed.
        at: Monotonic time of the signal in seconds.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.terminated = number != signal.SIGINT
        self.again = False
        self.at = time.monotonic()


class Interrupts:
    """Context that handles the signals that end a process; enter it in the main thread.

    Before :meth:`begin`, a signal ends the process at once. Afterwards the first signal raises
    :class:`Interrupted` in the main thread, and signals during its handling raise nothing. A
    thread ends the process when the time to stop is over, whatever the main thread is doing.

    Args:
        exit_code: Exit code of a process that is ended here.

    Attributes:
        finished: Set to True once there is nothing left to interrupt; signals are then ignored.
    """

    def __init__(self, exit_code: int = EXIT_STOPPED) -> None:
        self.exit_code = exit_code
        self.finished = False
        self._timeout_s: Callable[[], float] | None = None
        self._handled = False
        self._numbers = [
            number
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
            if signal.getsignal(number) is not signal.SIG_IGN  # set by nohup
        ]
        self._previous_handlers: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        self._read_end, self._write_end = os.pipe()
        os.set_blocking(self._write_end, False)
        threading.Thread(target=self._watch, daemon=True).start()
        self._previous_wakeup_fd = signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False)
        self._previous_handlers = {
            each: signal.signal(each, self._handle) for each in self._numbers
        }
        return self

    def __exit__(self, *exception: object) -> None:
        """Restore the previous handlers."""
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._previous_wakeup_fd)
        os.write(self._write_end, _QUIT)

    def begin(self, timeout_s: Callable[[], float]) -> None:
        """Mark the start of the command: from here on it is stopped, not ended at once.

        Args:
            timeout_s: Returns the seconds that the command may take to stop.
        """
        self._timeout_s = timeout_s

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._handled = True
        if self.finished:
            return
        if self._timeout_s is None:
            self.finished = True  # ignore further signals
            self._end("nothing was written")
        current = _find_interrupt(sys.exc_info()[1])
        if current is None:
            raise Interrupted(number)
        if isinstance(current, Interrupted) and time.monotonic() - current.at > _REPEAT_S:
            current.again = True

    def _watch(self) -> None:
        """Read the signal numbers from the pipe and enforce the time limit. They arrive here even
        while the main thread is inside a library call, when Python runs no handler."""
        received_at: float | None = None
        left_s: float | None = None
        while True:
            if received_at is not None and self._timeout_s is not None:
                left_s = max(0.0, received_at + self._timeout_s() + _MARGIN_S - time.monotonic())
            if not select.select([self._read_end], [], [], left_s)[0]:
                self._end("it did not end in time, and was killed")
            read = os.read(self._read_end, 1)
            if read == _QUIT:
                os.close(self._read_end)
                os.close(self._write_end)
                return
            if read[0] not in self._numbers:  # a signal that a library handles
                continue
            now = time.monotonic()
            received_at = received_at or now
            is_installed = signal.getsignal(read[0]) == self._handle
            if is_installed and not self._handled and now - received_at > _REPEAT_S:
                self._end("it was killed in the middle of a step")

    def _end(self, message: str) -> NoReturn:
        """End this process; ranks notice the end of their parent."""
        with suppress(OSError):
            os.write(2, f"longtake: stopped; {message}\n".encode())
        os._exit(self.exit_code)


def _find_interrupt(error: BaseException | None) -> BaseException | None:
    """The interrupt among an exception and its contexts, if any."""
    while error is not None and not isinstance(error, KeyboardInterrupt | Stopped):
        error = error.__context__
    return error
