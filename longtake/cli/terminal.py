"""What a command shows while it works: a progress bar, plain lines, JSON, or nothing."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from abc import ABC, abstractmethod
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, TextIO, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as ProgressBars

from longtake.configs.engine import EngineConfig
from longtake.configs.request import ResolvedRequest
from longtake.engine.launch.torchrun import TorchrunPlace
from longtake.pipelines.progress import Progress

if TYPE_CHECKING:
    from longtake.engine.video import Metadata

_PHASES = {"text": "encoding"}
_PARTS = {"denoising": "step", "decoding": "tile"}
_DAY_S = 24 * 3600


DisplayT = TypeVar("DisplayT", bound="Display")


class Display:
    """Something on the terminal, for as long as this context is entered."""

    def __enter__(self: DisplayT) -> DisplayT:
        self.open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave the terminal as it was."""
        self.close()

    def open(self) -> None:
        """Show it."""

    def close(self) -> None:
        """Put back what was changed on the terminal; once or more often."""


class View(Display, ABC):
    """Shows a rendering. Errors go to stderr in every view.

    Attributes:
        written: the files that have their names already.
        stop_timeout_s: seconds that what is shown has to stop once it is told to.
    """

    def __init__(self) -> None:
        self.written: list[Path] = []
        self.stop_timeout_s = EngineConfig().stop_timeout_s

    @abstractmethod
    def progress(self, progress: Progress) -> None:
        """Ranks got on."""

    @abstractmethod
    def done(self, paths: list[Path], metadata: Metadata) -> None:
        """Everything is written."""

    def note(self, text: str) -> None:
        """Something that is worth a line, and no warning."""
        say(text, sys.stderr)

    def warn(self, text: str) -> None:
        """Something that the user did not ask for; said in every view."""
        say(f"longtake: {text}", sys.stderr)

    def writing(self) -> None:
        """All frames are there."""
        self.progress(Progress("writing"))

    def failed(self, message: str, kind: str, exit_code: int) -> int:
        """Say what went wrong; returns the exit code."""
        rank = "" if TorchrunPlace.writes() else f"rank {os.environ['RANK']}: "
        say(f"longtake: {rank}{message}", sys.stderr)
        return exit_code


class _Quiet(View):
    """Nothing but warnings and errors."""

    def progress(self, progress: Progress) -> None:
        pass

    def done(self, paths: list[Path], metadata: Metadata) -> None:
        pass

    def note(self, text: str) -> None:
        pass


class _Json(View):
    """An event a line on stdout, for scripts."""

    def note(self, text: str) -> None:
        self._print({"event": "note", "text": text})

    def warn(self, text: str) -> None:
        self._print({"event": "warning", "text": text})
        super().warn(text)

    def progress(self, progress: Progress) -> None:
        self._print({"event": "progress", **asdict(progress)})

    def done(self, paths: list[Path], metadata: Metadata) -> None:
        files = [str(path) for path in paths]
        self._print({"event": "done", "output": files, "metadata": metadata.as_json()})

    def failed(self, message: str, kind: str, exit_code: int) -> int:
        self._print({"event": "error", "kind": kind, "message": message, "exit_code": exit_code})
        return super().failed(message, kind, exit_code)

    @staticmethod
    def _print(event: dict[str, object]) -> None:
        say(json.dumps(event), sys.stdout)


class _Lines(View):
    """Plain lines, for logs: each phase, and every tenth of its steps or tiles."""

    def __init__(self) -> None:
        super().__init__()
        self._phase = ""
        self._began = 0.0
        self._tenths = self._before = 0

    def progress(self, progress: Progress) -> None:
        now = time.perf_counter()
        part = _PARTS.get(progress.phase)
        if progress.phase != self._phase:
            self._phase, self._began, self._tenths = progress.phase, now, 0
            self._before = progress.done  # by an earlier rendering, with which this goes on
            if part is None:
                say(_named(progress) if progress.phase == "text" else progress.phase, sys.stderr)
        tenths = 10 * progress.done // progress.total if progress.total else 0
        done = progress.done - self._before
        if part is not None and done and tenths > self._tenths:
            self._tenths = tenths
            each = (now - self._began) / done
            left = each * (progress.total - progress.done)
            at = f"{progress.phase} {progress.done}/{progress.total}"
            say(f"{at}, {each:.2f} s a {part}, {left:.0f} s left", sys.stderr)

    def done(self, paths: list[Path], metadata: Metadata) -> None:
        say(_summary(paths, metadata), sys.stdout)


class _Bars(View):
    """A progress bar on a terminal."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._bars = ProgressBars(
            TextColumn("{task.description:<20}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._phase = ""
        self._began = 0.0
        self._before = 0
        self._task: TaskID | None = None

    def open(self) -> None:
        self._bars.start()

    def close(self) -> None:
        self._bars.stop()

    def progress(self, progress: Progress) -> None:
        now = time.perf_counter()
        if progress.phase != self._phase or self._task is None:
            if self._task is not None:
                self._bars.remove_task(self._task)
            self._phase, self._began, self._before = progress.phase, now, progress.done
            self._task = self._bars.add_task("", total=None, rate="")
        done = progress.done - self._before
        rate = f"{(now - self._began) / done:.2f} s each" if done else ""
        self._bars.update(
            self._task,
            description=_named(progress),
            completed=progress.done,
            total=progress.total or None,
            rate=rate,
        )

    def done(self, paths: list[Path], metadata: Metadata) -> None:
        self.close()
        say(_summary(paths, metadata), sys.stdout)


def _named(progress: Progress) -> str:
    """A phase in words, with what it is at."""
    return f"{_PHASES.get(progress.phase, progress.phase)} {progress.detail}".strip()


def view_of(*, quiet: bool, as_json: bool) -> View:
    """The view that was asked for, or that suits where the output goes; of all ranks, rank 0's."""
    if not TorchrunPlace.writes():
        return _Quiet()
    if as_json:
        return _Json()
    if quiet:
        return _Quiet()
    console = Console(stderr=True)
    return _Bars(console) if console.is_terminal else _Lines()


def say(line: str, stream: TextIO) -> None:
    """Print a line. What nobody reads any more (a closed pipe, a full disk) stops no rendering."""
    try:
        encoding = stream.encoding or "utf-8"
        print(line.encode(encoding, "backslashreplace").decode(encoding), file=stream)
        stream.flush()
    except (OSError, ValueError):
        with contextlib.suppress(
            OSError, ValueError
        ):  # else Python tries again, and fails, at exit
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)


def duration(seconds: float) -> str:
    """Seconds in words that are short: 42 s, 3:07, 2:04:11, 3 d 4 h."""
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    if seconds > 2 * _DAY_S:
        return f"{int(seconds // _DAY_S)} d {int(seconds % _DAY_S // 3600)} h"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _summary(paths: list[Path], metadata: Metadata) -> str:
    request, layout = metadata.request, metadata.layout
    ranks = "1 rank" if layout.world_size == 1 else f"{layout.world_size} ranks"
    stages = ", ".join(f"{stage} {taken:.1f}" for stage, taken in metadata.seconds.items())
    names = " ".join(map(str, paths))
    seed = f", seed {request.seed}" if isinstance(request, ResolvedRequest) else ""
    return (
        f"{names}: {metadata.num_frames} frames of {request.width}x{request.height}{seed}, on "
        f"{ranks}; seconds: {stages}"
    )
