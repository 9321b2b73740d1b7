"""The output of longtake batch: a live table, plain lines, JSON, or nothing."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table as LiveTable
from rich.text import Text

from longtake.cli.table import Table
from longtake.cli.terminal import Display, format_duration, print_line
from longtake.pipelines.runtime.progress import Progress
from longtake.serve.queue.job_records import JobRecord, State
from longtake.serve.runner.watcher import BatchWatcher

_TABLE = Table(
    header=("id", "state", "took", "attempts", "output", "error"),
    shortened=("id", "output"),
    dropped=("output", "attempts", "took"),
    wrapped="error",
)
_NOTES = 5
_ROWS = 16
_LISTED = 40


@dataclass
class _Running:
    start_s: float
    progress: Progress = Progress("starting")


class BatchView(Display, BatchWatcher):
    """Shows failures only; subclasses show more. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._states: dict[str, State] = {}
        self._running: dict[str, _Running] = {}
        self.reports: list[Path] = []

    def expect(self, jobs: Sequence[str]) -> None:
        """Add jobs to the count, as queued."""
        with self._lock:
            for job in jobs:
                self._states.setdefault(job, "queued")

    def progress(self, job: str, progress: Progress) -> None:
        """A job made progress."""
        with self._lock:
            self._running.setdefault(job, _Running(time.monotonic())).progress = progress

    def state(self, job: str, state: State, text: str) -> None:
        """A job changed its state."""
        with self._lock:
            self._states[job] = state
            if state == "running":
                self._running[job] = _Running(time.monotonic())
            else:
                self._running.pop(job, None)
            self._changed(job, state, text)

    def _changed(self, job: str, state: State, text: str) -> None:
        """Show a change of state. Called under the lock."""

    def note(self, text: str) -> None:
        """A message for the user."""

    def ended(self, jobs: Sequence[JobRecord], reports: Sequence[Path]) -> None:
        """The batch has ended; list the failures."""
        self.reports += reports
        for job in jobs:
            if job.state == "failed":
                print_line(f"longtake: {job.id} failed: {job.error}", sys.stderr)

    def _counted(self) -> str:
        counts = Counter(self._states.values())
        total = len(self._states)
        others = [f"{counts[s]} {s}" for s in ("running", "failed", "cancelled") if counts[s]]
        return ", ".join([f"{counts['done']} of {total} done", *others])


class _Lines(BatchView):
    """One line per change, for logs."""

    def note(self, text: str) -> None:
        with self._lock:
            print_line(text, sys.stderr)

    def _changed(self, job: str, state: State, text: str) -> None:
        reason = f": {text}" if text else ""
        print_line(f"{job}: {state}{reason.partition(chr(10))[0]} ({self._counted()})", sys.stderr)

    def ended(self, jobs: Sequence[JobRecord], reports: Sequence[Path]) -> None:
        self.close()
        listed = sorted(jobs, key=lambda job: job.state == "done")  # unfinished jobs first
        rows = [
            (
                job.id,
                job.state,
                format_duration(sum(job.seconds.values())),
                str(job.claims),
                job.output,
                job.error.partition("\n")[0],
            )
            for job in listed[:_LISTED]
        ]
        print_line("\n".join(_TABLE.lines(rows)), sys.stdout)
        if len(jobs) > _LISTED:
            print_line(f"... and {len(jobs) - _LISTED} more", sys.stdout)
        super().ended(jobs, reports)
        counts = Counter(job.state for job in jobs)
        states = ", ".join(f"{count} {state}" for state, count in counts.items()) or "no shots"
        print_line(f"{states}; see {' and '.join(map(str, reports))}", sys.stdout)


class _Json(BatchView):
    """One JSON event per line on stdout, for scripts."""

    def progress(self, job: str, progress: Progress) -> None:
        self._print({"event": "progress", "id": job, **asdict(progress)})

    def _changed(self, job: str, state: State, text: str) -> None:
        self._print({"event": "state", "id": job, "state": state, "text": text})

    def note(self, text: str) -> None:
        self._print({"event": "note", "text": text})

    def ended(self, jobs: Sequence[JobRecord], reports: Sequence[Path]) -> None:
        counts = dict(Counter(job.state for job in jobs))
        self.reports += reports
        files = [str(path) for path in reports]
        self._print({"event": "ended", "counts": counts, "reports": files})

    def _print(self, event: dict[str, object]) -> None:
        with self._lock:
            print_line(json.dumps(event), sys.stdout)


class _Table(_Lines):
    """A live table on a terminal: running jobs, their progress, and the latest messages."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._notes: list[str] = []
        self._live = Live(
            console=console, get_renderable=self._render, refresh_per_second=4, transient=True
        )

    def open(self) -> None:
        self._live.start()

    def close(self) -> None:
        self._live.stop()

    def note(self, text: str) -> None:
        with self._lock:
            self._notes = [*self._notes, text.partition("\n")[0]][-_NOTES:]

    def _changed(self, job: str, state: State, text: str) -> None:
        if state in ("failed", "cancelled") or (state == "queued" and text):
            self.note(f"{job}: {state}: {text}")

    def _render(self) -> Group:
        with self._lock:
            table = LiveTable(box=None, padding=(0, 2, 0, 0), expand=False)
            for name in ("running", "", "", "for"):
                table.add_column(name, style=None if name != "for" else "dim")
            for job, running in list(self._running.items())[:_ROWS]:
                progress = running.progress
                part = f"{progress.done}/{progress.total}" if progress.total else progress.detail
                table.add_row(
                    Text(job, overflow="ellipsis", no_wrap=True),
                    f"{progress.phase} {part}".strip(),
                    ProgressBar(total=progress.total or 1, completed=progress.done, width=24),
                    format_duration(time.monotonic() - running.start_s),
                )
            notes = [
                Text(each, style="dim", overflow="ellipsis", no_wrap=True) for each in self._notes
            ]
            return Group(Text(self._counted(), style="bold"), table, *notes)


def make_batch_view(*, quiet: bool, as_json: bool) -> BatchView:
    """The view for the given options and the kind of output."""
    if as_json:
        return _Json()
    if quiet:
        return BatchView()
    console = Console(stderr=True)
    return _Table(console) if console.is_terminal else _Lines()
