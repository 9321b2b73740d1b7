"""Output of a command while it works: a progress bar, plain lines, JSON, or nothing."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as ProgressBars

from longtake.configs.engine import EngineConfig
from longtake.configs.request import ResolvedRequest
from longtake.engine.torchrun import TorchrunEnvironment
from longtake.errors import RefusedInputError
from longtake.files.sizes import format_bytes
from longtake.pipelines.runtime.progress import Progress

if TYPE_CHECKING:
    from longtake.engine.metadata import Metadata

_PHASE_NAMES = {"text": "encoding"}
_UNITS = {"denoising": "step", "decoding": "tile", "downloading": "byte", "checking": "byte"}
_DAY_S = 24 * 3600

DisplayT = TypeVar("DisplayT", bound="Display")


class Display:
    """Context that shows something on the terminal. :meth:`close` may be called more than once."""

    def __enter__(self: DisplayT) -> DisplayT:
        self.open()
        return self

    def __exit__(self, *exception: object) -> None:
        """Close the display."""
        self.close()

    def open(self) -> None:
        """Start showing."""

    def close(self) -> None:
        """Stop showing and restore the terminal."""


class View(Display, ABC):
    """Reports the progress of one rendering. Errors go to stderr in every view.

    Attributes:
        written: The files that are complete under their names.
        stop_timeout_s: Seconds that the rendering may take to stop.
    """

    def __init__(self) -> None:
        self.written: list[Path] = []
        self.stop_timeout_s = EngineConfig().stop_timeout_s

    @abstractmethod
    def progress(self, progress: Progress) -> None:
        """Report progress of the ranks."""

    @abstractmethod
    def done(self, paths: list[Path], metadata: Metadata) -> None:
        """Report that all files are written."""

    def note(self, text: str) -> None:
        """Report something that is not a warning."""
        print_line(text, sys.stderr)

    def warn(self, text: str) -> None:
        """Report a warning; every view shows it."""
        print_line(f"longtake: {text}", sys.stderr)

    def writing(self) -> None:
        """Report that all frames are decoded."""
        self.progress(Progress("writing"))

    def failed(self, message: str, kind: str, exit_code: int) -> int:
        """Report an error.

        Args:
            message: The error in one line.
            kind: Name of the exception's class, or "stopped".
            exit_code: Exit code of the command.

        Returns:
            The exit code.
        """
        print_line(f"longtake: {TorchrunEnvironment.message_prefix()}{message}", sys.stderr)
        return exit_code


class _Quiet(View):
    """Warnings and errors only."""

    def progress(self, progress: Progress) -> None:
        pass

    def done(self, paths: list[Path], metadata: Metadata) -> None:
        pass

    def note(self, text: str) -> None:
        pass


class _Json(View):
    """One JSON event per line on stdout, for scripts."""

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
        print_line(json.dumps(event), sys.stdout)


class _Lines(View):
    """Plain lines, for logs: each phase, and each tenth of its steps or tiles."""

    def __init__(self) -> None:
        super().__init__()
        self._phase = ""
        self._started = 0.0
        self._tenths = self._done_before = 0

    def progress(self, progress: Progress) -> None:
        now = time.perf_counter()
        unit = _UNITS.get(progress.phase)
        if progress.phase != self._phase:
            self._phase, self._started, self._tenths = progress.phase, now, 0
            self._done_before = progress.done  # by the rendering that is resumed
            if unit is None:
                print_line(
                    _describe(progress) if progress.phase == "text" else progress.phase, sys.stderr
                )
        tenths = 10 * progress.done // progress.total if progress.total else 0
        done = progress.done - self._done_before
        if unit is not None and done and tenths > self._tenths:
            self._tenths = tenths
            each_s = (now - self._started) / done
            left_s = each_s * (progress.total - progress.done)
            position = f"{progress.phase} {_position(progress)}, {_rate(each_s, unit)}"
            print_line(f"{position}, {left_s:.0f} s left", sys.stderr)

    def done(self, paths: list[Path], metadata: Metadata) -> None:
        print_line(_summary(paths, metadata), sys.stdout)


class _Bars(View):
    """A progress bar on a terminal."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._bars = ProgressBars(
            TextColumn("{task.description:<20}"),
            BarColumn(),
            TextColumn("{task.fields[position]}"),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._phase = ""
        self._started = 0.0
        self._done_before = 0
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
            self._phase, self._started, self._done_before = progress.phase, now, progress.done
            self._task = self._bars.add_task("", total=None, position="", rate="")
        done = progress.done - self._done_before
        unit = _UNITS.get(progress.phase, "")
        self._bars.update(
            self._task,
            description=_describe(progress),
            completed=progress.done,
            total=progress.total or None,
            position=_position(progress),
            rate=_rate((now - self._started) / done, unit) if done else "",
        )

    def done(self, paths: list[Path], metadata: Metadata) -> None:
        self.close()
        print_line(_summary(paths, metadata), sys.stdout)


def _describe(progress: Progress) -> str:
    """The phase, and the component that it works on."""
    return f"{_PHASE_NAMES.get(progress.phase, progress.phase)} {progress.detail}".strip()


def _position(progress: Progress) -> str:
    """How much of a phase is done."""
    if _UNITS.get(progress.phase) == "byte":
        return f"{format_bytes(progress.done)} of {format_bytes(progress.total)}"
    return f"{progress.done}/{progress.total or '?'}"


def _rate(each_s: float, unit: str) -> str:
    """The time of a step or a tile, or the bytes of a second."""
    if unit == "byte":
        return f"{1e-6 / each_s:.0f} MB/s"
    return f"{each_s:.2f} s per {unit}" if unit else f"{each_s:.2f} s each"


def make_view(*, quiet: bool, as_json: bool) -> View:
    """The view that the options select, else bars on a terminal and lines elsewhere.

    Under torchrun only the rank that writes the video reports.
    """
    if not TorchrunEnvironment.is_writer():
        return _Quiet()
    if as_json:
        return _Json()
    if quiet:
        return _Quiet()
    console = Console(stderr=True)
    return _Bars(console) if console.is_terminal else _Lines()


def print_refusable(described: dict[str, Any], check: Callable[[], object]) -> int:
    """Print one JSON object to stdout, with the reason why it was refused, and that to stderr too.

    Args:
        described: The object.
        check: What raises RefusedInputError if it was refused.

    Returns:
        The exit code.
    """
    code = 0
    try:
        check()
    except RefusedInputError as error:
        code = 2
        described |= {"error": str(error), "kind": type(error).__name__, "exit_code": code}
        print_line(f"longtake: {error}", sys.stderr)
    print_line(json.dumps(described, indent=1, allow_nan=False), sys.stdout)
    return code


def print_line(line: str, stream: TextIO) -> None:
    """Print a line. A closed pipe or a full disk does not stop the command."""
    try:
        encoding = stream.encoding or "utf-8"
        print(line.encode(encoding, "backslashreplace").decode(encoding), file=stream)
        stream.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            # Otherwise Python flushes the stream again at exit, and fails.
            devnull = os.open(os.devnull, os.O_WRONLY)
            os.dup2(devnull, stream.fileno())
            os.close(devnull)


def format_duration(seconds: float) -> str:
    """A time span in short form: 4.2 s, 42 s, 3:07, 2:04:11, 3 d 4 h."""
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
    stages = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in metadata.seconds.items())
    names = " ".join(map(str, paths))
    seed = f", seed {request.seed}" if isinstance(request, ResolvedRequest) else ""
    return (
        f"{names}: {metadata.num_frames} frames of {request.width}x{request.height}{seed}, on "
        f"{ranks}; seconds: {stages}"
    )
