"""What SIGINT, SIGTERM and SIGHUP do to a command: one of them, or fifty at any moment."""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any, NoReturn

from longtake.errors import Stopped

EXIT_STOPPED = 130

_MARGIN_S = 10.0
"""For what comes after the ranks have stopped or were killed: files and queues are closed."""
_HURRY_S = 1.0
"""A signal that comes so long after the first one is meant as another one."""
_QUIT = b"\0"


class Interrupted(KeyboardInterrupt):
    """A signal told the command to end.

    Attributes:
        terminated: by a signal that is not Ctrl-C; see :class:`Stopped`.
        again: by another one since, a second later or more: the user is in a hurry.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.terminated = number != signal.SIGINT
        self.again = False
        self.at = time.monotonic()


class Interrupts:
    """Takes the signals that end a process, in the main thread.

    Until :meth:`begin`, one ends the process at once: nothing was begun. Then one raises
    :class:`Interrupted` in the main thread, and those that come while that is being handled raise
    nothing. A thread ends the process if it is still there when its time is over, whatever the
    main one is doing.

    Args:
        exit_code: of a process that is ended here.

    Attributes:
        over: nothing is to be interrupted any more.
    """

    def __init__(self, exit_code: int = EXIT_STOPPED) -> None:
        self.exit_code = exit_code
        self.over = False
        self._timeout_s: Callable[[], float] | None = None
        self._heard = False
        self._numbers = [
            number
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
            if signal.getsignal(number) is not signal.SIG_IGN  # as nohup asks for
        ]
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        self._read_end, self._write_end = os.pipe()
        os.set_blocking(self._write_end, False)
        threading.Thread(target=self._watch, daemon=True).start()
        self._wakeup_before = signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False)
        self._before = {each: signal.signal(each, self._handle) for each in self._numbers}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup_before)
        os.write(self._write_end, _QUIT)

    def begin(self, timeout_s: Callable[[], float]) -> None:
        """The command begins.

        Args:
            timeout_s: seconds that it has to stop what it does.
        """
        self._timeout_s = timeout_s

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._heard = True
        if self.over:
            return
        if self._timeout_s is None:
            self.over = True  # before another one comes
            self._end("nothing was written")
        handled = _interrupt_in(sys.exc_info()[1])
        if handled is None:
            raise Interrupted(number)
        if isinstance(handled, Interrupted) and time.monotonic() - handled.at > _HURRY_S:
            handled.again = True

    def _watch(self) -> None:
        """Read the numbers of the signals, which come here even while the main thread is in a
        function of a library that does not return."""
        heard_at: float | None = None
        left_s: float | None = None
        while True:
            if heard_at is not None and self._timeout_s is not None:
                left_s = max(0.0, heard_at + self._timeout_s() + _MARGIN_S - time.monotonic())
            if not select.select([self._read_end], [], [], left_s)[0]:
                self._end("it did not end in time, and was killed")
            read = os.read(self._read_end, 1)
            if read == _QUIT:
                os.close(self._read_end)
                os.close(self._write_end)
                return
            if read[0] not in self._numbers:  # of a library's own
                continue
            now = time.monotonic()
            heard_at = heard_at or now
            own = signal.getsignal(read[0]) == self._handle
            if own and not self._heard and now - heard_at > _HURRY_S:
                self._end("it was killed in the middle of a step")

    def _end(self, words: str) -> NoReturn:
        """End this process; its ranks end with it."""
        with suppress(OSError):
            os.write(2, f"longtake: stopped; {words}\n".encode())
        os._exit(self.exit_code)


def _interrupt_in(error: BaseException | None) -> BaseException | None:
    """What stops the command, if that is what is being handled at the moment."""
    while error is not None and not isinstance(error, KeyboardInterrupt | Stopped):
        error = error.__context__
    return error
