"""A batch whose processes are killed, and what must hold once it has ended.

``make test`` runs :data:`SMALL_SAMPLE`. ``make soak`` kills at random moments:
``python -m tests.kills --kills 200``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import queue
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import psutil

from longtake.cli import main as cli
from longtake.serve.queue.job_store import JobStore
from tests import tiny
from tests.forked_commands import ForkedCommand, ranks_by_number
from tests.processes import still_running

LONGTAKE = [sys.executable, "-m", "longtake"]
PHASES = ("starting", "loading", "text", "denoising", "decoding", "writing", "done")
VICTIMS = ("rank 0", "rank 1", "supervisor", "all")
STEPS = 24
SNAPSHOT_STEPS = 5
TIMEOUT_S = 300.0
_RESUMED = re.compile(rf"(.+): resumes after step (\d+) of {STEPS}")


@dataclass(frozen=True)
class Kill:
    """A SIGKILL.

    Attributes:
        victim: One of VICTIMS.
        phase: One of PHASES.
        delay_s: Seconds from the first event of the phase to the kill.
        after_step: Denoising steps that must have been reported.
    """

    victim: str
    phase: str
    delay_s: float = 0.0
    after_step: int = 0

    @classmethod
    def random(cls, generator: random.Random, number: int) -> Kill:
        """A kill at a random moment; victims take turns."""
        victim = VICTIMS[number % len(VICTIMS)]
        return cls(victim, generator.choice(PHASES), generator.uniform(0, 0.4))

    def is_due(self, event: dict[str, Any]) -> bool:
        """Whether an event of ``--json`` is the moment for this kill."""
        return phase_of(event) == self.phase and event.get("done", 0) >= self.after_step


SMALL_SAMPLE = (
    Kill("supervisor", "starting", 0.2),
    Kill("rank 1", "loading"),
    Kill("rank 0", "text"),
    Kill("all", "denoising", after_step=8),
    Kill("rank 1", "denoising", after_step=13),
    Kill("supervisor", "decoding"),
    Kill("rank 0", "decoding"),
    Kill("all", "writing"),
    Kill("rank 1", "done"),
)
"""Each phase and each victim, in the order in which phases occur."""


@dataclass
class Observations:
    """What the processes of a batch reported.

    Attributes:
        steps_done: Last step reported, by shot.
        repeated_steps: Steps repeated after each fault that lost any.
        resumed: Last step reported and step resumed after, of renderings that continued from a
            snapshot.
        processes: All processes seen.
        detection_s: Seconds from the kill of a rank to the next state or note, by kill.
        kills: Number of kills, by victim.
    """

    steps_done: dict[str, int] = field(default_factory=dict)
    repeated_steps: list[int] = field(default_factory=list)
    resumed: list[tuple[int, int]] = field(default_factory=list)
    processes: list[psutil.Process] = field(default_factory=list)
    detection_s: list[float] = field(default_factory=list)
    kills: Counter[str] = field(default_factory=Counter)

    def add_event(self, event: dict[str, Any]) -> None:
        """Record an event of ``--json``."""
        if event["event"] == "state" and event["state"] == "done":
            self.steps_done[event["id"]] = 0
        if event["event"] == "note" and (note := _RESUMED.fullmatch(event["text"])):
            self.resumed.append((self.steps_done.get(note[1], 0), int(note[2])))
        if event["event"] != "progress" or event["phase"] != "denoising":
            return
        previous, done = self.steps_done.get(event["id"], 0), event["done"]
        if done < previous:
            self.repeated_steps.append(previous - done)
        self.steps_done[event["id"]] = done

    def add(self, other: Observations) -> None:
        """Add the figures of another batch."""
        self.repeated_steps += other.repeated_steps
        self.resumed += other.resumed
        self.detection_s += other.detection_s
        self.kills += other.kills


class BatchProcess:
    """A process of ``longtake batch``, its events and its ranks.

    Args:
        arguments: Arguments of the command.
        errors: File that receives stderr.
    """

    def __init__(self, arguments: Sequence[str], errors: TextIO) -> None:
        words = ["batch", *arguments, "--json"]
        self.popen = ForkedCommand(words, stdout=subprocess.PIPE, stderr=errors)
        self.process = psutil.Process(self.popen.pid)
        self._events: queue.Queue[dict[str, Any] | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.popen.stdout is not None
        with self.popen.stdout as lines:
            for line in lines:
                with contextlib.suppress(ValueError):  # a line truncated by a kill
                    self._events.put(json.loads(line))
        self._events.put(None)

    def next_event(self, timeout_s: float = TIMEOUT_S) -> dict[str, Any] | None:
        """The next event, or None after the last."""
        try:
            return self._events.get(timeout=timeout_s)
        except queue.Empty:
            self.popen.kill()
            raise AssertionError(f"no event within {timeout_s} s") from None

    def remaining_events(self) -> list[dict[str, Any]]:
        """All further events; the process must then exit with 0."""
        events = []
        while (event := self.next_event()) is not None:
            events.append(event)
        assert self.popen.wait(timeout=30) == 0
        return events

    def ranks(self) -> dict[int, psutil.Process]:
        """The running ranks, by number."""
        return ranks_by_number(self.popen.pid)

    def kill(self, victim: str) -> bool:
        """Kill one of VICTIMS; returns whether it was running."""
        ranks = self.ranks()
        if victim == "supervisor":
            targets = [self.process]
        elif victim == "all":
            targets = [*ranks.values(), self.process]
        else:
            targets = [rank for number, rank in ranks.items() if victim == f"rank {number}"]
        for target in targets:
            with contextlib.suppress(psutil.Error):
                target.kill()
        return bool(targets)


def run_with_kills(
    arguments: Sequence[str], folder: Path, kills: Sequence[Kill], errors: TextIO
) -> Observations:
    """Run a batch, again whenever it dies, until all kills have happened and it exits with 0."""
    observations, pending = Observations(), list(kills)
    while True:
        batch = BatchProcess(arguments, errors)
        observations.processes.append(batch.process)
        _watch(batch, pending, observations)
        code = batch.popen.wait(timeout=60)
        assert not still_running(observations.processes, timeout=10)
        if code != -signal.SIGKILL:
            assert code == 0, f"exit code {code}"
            if not pending:
                return observations
            for output in (folder / "out").glob("*.npy"):  # render again for the other kills
                output.unlink()


def _watch(batch: BatchProcess, pending: list[Kill], observations: Observations) -> None:
    """Read the events of one process until its end, and kill what is due."""
    start = time.monotonic()
    killed_at: float | None = None
    while (event := batch.next_event()) is not None:
        assert time.monotonic() - start < TIMEOUT_S
        observations.add_event(event)
        if killed_at is not None and event["event"] in ("state", "note"):
            observations.detection_s.append(time.monotonic() - killed_at)
            killed_at = None
        if not pending or not pending[0].is_due(event):
            continue
        observations.processes += batch.ranks().values()
        time.sleep(pending[0].delay_s)
        if batch.kill(pending[0].victim):
            victim = pending.pop(0).victim
            observations.kills[victim] += 1
            killed_at = time.monotonic() if victim.startswith("rank") else None


def phase_of(event: dict[str, Any]) -> str:
    """The phase that an event of ``--json`` reports: one of PHASES, or an empty string."""
    if event["event"] == "progress":
        return str(event["phase"])
    if event["event"] == "state":
        return {"running": "starting", "done": "done"}.get(event["state"], "")
    return ""


def last_snapshot(reported: int) -> int:
    """The step of the last snapshot that is certainly on disk once a step was reported: it is
    written during the next step."""
    return (reported - 1) // SNAPSHOT_STEPS * SNAPSHOT_STEPS


def check(
    folder: Path, observations: Observations, expected: dict[str, np.ndarray[Any, Any]]
) -> None:
    """Check a batch that has ended: its videos, its faults and its leftovers."""
    out = folder / "out"
    for name, frames in expected.items():
        np.testing.assert_array_equal(np.load(out / f"{name}.npy"), frames)
    assert not [path for path in out.rglob("*") if ".partial" in path.name]
    with JobStore(out) as store:
        assert {job.state for job in store.jobs()} == {"done"}
    assert not list((out / ".longtake" / "snapshots").iterdir())
    assert not list((out / ".longtake" / "ranks").iterdir())
    assert max(observations.repeated_steps, default=0) <= SNAPSHOT_STEPS, observations
    for reported, resumed in observations.resumed:
        assert resumed >= last_snapshot(reported), observations
        assert resumed % SNAPSHOT_STEPS == 0 or resumed == STEPS, observations
    assert max(observations.detection_s, default=0) < 10, observations
    assert "Traceback" not in (folder / "errors").read_text()


def batch_arguments(folder: Path, model: str | Path, num_shots: int, devices: int = 2) -> list[str]:
    """Write a file of small shots; returns the arguments of a batch that renders them."""
    path = folder / "shots.jsonl"
    rows = (
        {
            "id": f"shot-{number}",
            "prompt": "a cat walks",
            "seed": number,
            "num_inference_steps": STEPS,
            "output": f"shot-{number}.npy",
        }
        for number in range(num_shots)
    )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = [str(path), "-o", str(folder / "out"), "--model", str(model)]
    arguments += ["--devices", str(devices)]
    return [*arguments, "--snapshot-steps", str(SNAPSHOT_STEPS), "--attempts", "1000"]


def render_uninterrupted(folder: Path, arguments: Sequence[str]) -> dict[str, np.ndarray[Any, Any]]:
    """The videos of a batch that nothing interrupts, by shot; its output folder is moved away."""
    out = folder / "out"
    assert cli.main(["batch", *arguments, "--quiet"]) == 0
    videos = {path.stem: np.load(path) for path in out.glob("*.npy")}
    os.rename(out, folder / "uninterrupted")
    return videos


@contextlib.contextmanager
def no_shared_memory_left() -> Iterator[None]:
    """Check that the enclosed lines leave no shared memory behind."""
    before = set(os.listdir("/dev/shm"))
    yield
    assert set(os.listdir("/dev/shm")) <= before


def main() -> None:
    """Kill processes of batches at random moments, and report."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--kills-per-batch", type=int, default=20)
    parser.add_argument("--shots", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    generator = random.Random(options.seed)
    kills = [Kill.random(generator, number) for number in range(options.kills)]
    total, start = Observations(), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="longtake-soak-") as name, no_shared_memory_left():
        folder = Path(name)
        model = tiny.save(folder / "tiny")
        arguments = batch_arguments(folder, model, options.shots)
        expected = render_uninterrupted(folder, arguments)
        with (folder / "errors").open("w") as errors:
            for first in range(0, options.kills, options.kills_per_batch):
                batch_kills = kills[first : first + options.kills_per_batch]
                observations = run_with_kills(arguments, folder, batch_kills, errors)
                check(folder, observations, expected)
                total.add(observations)
                os.rename(folder / "out", folder / f"out-{first}")
                elapsed_s = time.monotonic() - start
                print(
                    f"{total.kills.total()} kills, {elapsed_s:.0f} s, "
                    f"repeated steps {total.repeated_steps}",
                    flush=True,
                )
    print(f"kills: {dict(total.kills)}; all {len(expected)} shots of every batch are exact")
    print(
        f"faults that lost steps: {len(total.repeated_steps)}, "
        f"at most {max(total.repeated_steps, default=0)} steps"
    )
    print(f"a killed rank was detected within {max(total.detection_s, default=0):.1f} s")


if __name__ == "__main__":
    main()
