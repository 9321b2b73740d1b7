"""A batch whose processes are killed at random moments, again and again, until it is done; and what
must hold then. ``make soak`` does it 200 times: ``python -m tests.kills --kills 200``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import queue
import random
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

from longtake.serve.queue.job_store import JobStore
from tests import tiny
from tests.processes import still_running

COMMAND = [sys.executable, "-m", "longtake", "batch"]
PHASES = ("starting", "loading", "text", "denoising", "decoding", "writing", "done")
VICTIMS = ("rank 0", "rank 1", "supervisor", "all")
STEPS = 24
K = 5
LONGEST_S = 300.0


@dataclass
class Kill:
    """What is killed, and when.

    Attributes:
        victim: one of VICTIMS.
        phase: one of PHASES.
        after_s: once the phase was seen.
    """

    victim: str
    phase: str
    after_s: float

    @classmethod
    def drawn(cls, draw: random.Random, number: int) -> Kill:
        """A random one, of each victim and each phase alike often."""
        victim = VICTIMS[number % len(VICTIMS)]
        phase = PHASES[draw.randrange(len(PHASES))]
        return cls(victim, phase, draw.uniform(0, 0.4))


@dataclass
class Ledger:
    """What a batch said of its progress, over all the processes that it took.

    Attributes:
        reached: the last step that was told of each shot.
        redone: steps that were done again after each fault that cost any.
        seen: every process that was part of it.
        found_s: seconds from the kill of a rank to when the batch said so.
    """

    reached: dict[str, int] = field(default_factory=dict)
    redone: list[int] = field(default_factory=list)
    seen: list[psutil.Process] = field(default_factory=list)
    found_s: list[float] = field(default_factory=list)
    kills: Counter[str] = field(default_factory=Counter)

    def take(self, event: dict[str, Any]) -> None:
        """An event of ``--json``."""
        if event["event"] == "state" and event["state"] == "done":
            self.reached[event["id"]] = 0
        if event["event"] != "progress" or event["phase"] != "denoising":
            return
        before, done = self.reached.get(event["id"], 0), event["done"]
        if done < before:
            self.redone.append(before - done)
        self.reached[event["id"]] = done


class Running:
    """One process of a batch, its events, and its ranks."""

    def __init__(self, arguments: Sequence[str], errors: TextIO) -> None:
        self.process = subprocess.Popen(
            [*COMMAND, *arguments, "--json"], stdout=subprocess.PIPE, stderr=errors, text=True
        )
        self.itself = psutil.Process(self.process.pid)
        self.events: queue.Queue[dict[str, Any] | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                with contextlib.suppress(ValueError):  # one that a kill cut off
                    self.events.put(json.loads(line))
        self.events.put(None)

    def next(self, timeout_s: float = LONGEST_S) -> dict[str, Any] | None:
        """The next event; None once there will be no other."""
        try:
            return self.events.get(timeout=timeout_s)
        except queue.Empty:
            self.process.kill()
            raise AssertionError("the batch stands still") from None

    def ranks(self) -> dict[int, psutil.Process]:
        """Its ranks that run, by number."""
        found = {}
        with contextlib.suppress(psutil.Error):
            for child in self.itself.children():
                with contextlib.suppress(psutil.Error):
                    if child.status() != psutil.STATUS_ZOMBIE:
                        found[int(child.environ().get("RANK", -1))] = child
        return found

    def kill(self, victim: str) -> bool:
        """Whether there was something to kill."""
        ranks = self.ranks()
        if victim == "supervisor":
            targets = [self.itself]
        elif victim == "all":
            targets = [*ranks.values(), self.itself]
        else:
            targets = [rank for number, rank in ranks.items() if victim == f"rank {number}"]
        for target in targets:
            with contextlib.suppress(psutil.Error):
                target.kill()
        return bool(targets)


def run_killed(
    arguments: Sequence[str], folder: Path, kills: Sequence[Kill], errors: TextIO
) -> Ledger:
    """Run a batch, with the same command again whenever it dies, until it ends by itself."""
    ledger, left = Ledger(), list(kills)
    while True:
        running = Running(arguments, errors)
        ledger.seen.append(running.itself)
        begun = time.monotonic()
        killed_at: float | None = None
        while (event := running.next()) is not None:
            assert time.monotonic() - begun < LONGEST_S
            ledger.take(event)
            if killed_at is not None and event["event"] in ("state", "note"):
                ledger.found_s.append(time.monotonic() - killed_at)
                killed_at = None
            if left and phase_of(event) == left[0].phase:
                ledger.seen += running.ranks().values()
                time.sleep(left[0].after_s)
                if running.kill(left[0].victim):
                    kill = left.pop(0)
                    ledger.kills[kill.victim] += 1
                    killed_at = time.monotonic() if kill.victim.startswith("rank") else None
        code = running.process.wait(timeout=60)
        assert not still_running(ledger.seen, timeout=10)
        if code != -signal.SIGKILL:
            assert code == 0, f"exit code {code}"
            if not left:
                return ledger
            for output in (folder / "out").glob("*.npy"):  # there were fewer moments than kills
                output.unlink()


def phase_of(event: dict[str, Any]) -> str:
    """The phase that an event tells of, one of PHASES, or none of them."""
    if event["event"] == "progress":
        return str(event["phase"])
    if event["event"] == "state":
        return {"running": "starting", "done": "done"}.get(event["state"], "")
    return ""


def check(folder: Path, ledger: Ledger, whole: dict[str, np.ndarray[Any, Any]]) -> None:
    """What must hold once a batch is done, however often it was killed."""
    out = folder / "out"
    for name, frames in whole.items():
        np.testing.assert_array_equal(np.load(out / f"{name}.npy"), frames)
    assert not [path for path in out.rglob("*") if ".partial" in path.name]
    with JobStore(out) as store:
        assert {job.state for job in store.jobs()} == {"done"}
    assert not list((out / ".longtake" / "snapshots").iterdir())
    assert not list((out / ".longtake" / "ranks").iterdir())
    assert max(ledger.redone, default=0) <= K, ledger.redone
    assert max(ledger.found_s, default=0) < 10, ledger.found_s


def shots(folder: Path, count: int) -> tuple[Path, list[str]]:
    """A file of small shots, and the arguments of a batch on two ranks that renders them."""
    path = folder / "shots.jsonl"
    rows = (
        {
            "id": f"shot-{number}",
            "prompt": "a cat walks",
            "seed": number,
            "num_inference_steps": STEPS,
            "output": f"shot-{number}.npy",
        }
        for number in range(count)
    )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = [str(path), "-o", str(folder / "out"), "--devices", "2"]
    return path, [*arguments, "--snapshot-steps", str(K), "--attempts", "1000"]


def rendered(folder: Path, arguments: Sequence[str]) -> dict[str, np.ndarray[Any, Any]]:
    """What a batch gives that nothing happens to; its folder is emptied again."""
    out = folder / "out"
    subprocess.run([*COMMAND, *arguments, "--quiet"], check=True, timeout=LONGEST_S)
    whole = {path.stem: np.load(path) for path in out.glob("*.npy")}
    os.rename(out, folder / "whole")
    return whole


@contextlib.contextmanager
def nothing_left_in_memory() -> Iterator[None]:
    """No shared memory is left behind by the enclosed lines."""
    before = set(os.listdir("/dev/shm"))
    yield
    assert set(os.listdir("/dev/shm")) <= before


def main() -> None:
    """Kill so many times, and report."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--shots", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds-of", type=int, default=20, help="kills in one batch")
    asked = parser.parse_args()
    draw = random.Random(asked.seed)
    kills = [Kill.drawn(draw, number) for number in range(asked.kills)]
    total, begun = Ledger(), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="longtake-soak-") as name, nothing_left_in_memory():
        folder = Path(name)
        model = tiny.save(folder / "tiny")
        _, arguments = shots(folder, asked.shots)
        arguments += ["--model", str(model)]
        whole = rendered(folder, arguments)
        with (folder / "errors").open("w") as errors:
            for first in range(0, asked.kills, asked.rounds_of):
                some = kills[first : first + asked.rounds_of]
                ledger = run_killed(arguments, folder, some, errors)
                check(folder, ledger, whole)
                total.kills += ledger.kills
                total.redone += ledger.redone
                total.found_s += ledger.found_s
                os.rename(folder / "out", folder / f"out-{first}")
                told = f"{total.kills.total()} kills, {time.monotonic() - begun:.0f} s"
                print(f"{told}, redone {total.redone}", flush=True)
    print(
        f"kills: {dict(total.kills)}, all of {len(whole)} shots right after each {asked.rounds_of}"
    )
    print(f"faults that cost steps: {len(total.redone)}, at most {max(total.redone, default=0)}")
    print(f"a killed rank was found within {max(total.found_s, default=0):.1f} s")


if __name__ == "__main__":
    main()
