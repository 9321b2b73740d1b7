"""The queue: adding, claiming, cancelling and retrying jobs."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing as mp
import os
import sqlite3
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from longtake.errors import EngineError, RankError, RequestError
from longtake.serve.queue.claims import LEASE_S, ClaimLostError
from longtake.serve.queue.job_records import JobRecord, NewJob
from longtake.serve.queue.job_store import JobStore
from longtake.serve.queue.process_identity import Owner
from longtake.serve.queue.retry_policy import judge_fault
from tests.rendering import request

NOW = 1_000_000.0


def job(number: int, **changes: Any) -> NewJob:
    name = f"shot-{number}"
    settings: dict[str, Any] = dict(
        id=name,
        source="shots.jsonl",
        position=number,
        output=f"{name}.mp4",
        engine="engine",
        request=request(seed=number),
        fingerprint=name,
    )
    return NewJob(**{**settings, **changes})


@pytest.fixture
def store(tmp_path: Path) -> Any:
    with JobStore(tmp_path, create=True) as opened:
        yield opened


def queued(store: JobStore, *jobs: NewJob, there: bool = True) -> dict[str, int]:
    return {k: n for k, n in store.enqueue(jobs, lambda job: there, NOW).items() if n}


def claimed(store: JobStore, now: float = NOW) -> JobRecord:
    taken = store.claims.take("engine", now)
    assert taken is not None
    return taken


def test_jobs_are_claimed_in_order_and_once(store: JobStore) -> None:
    assert queued(store, job(2), job(1), job(3, engine="another")) == {"new": 3}
    first, second = claimed(store), claimed(store)
    assert (first.id, second.id) == ("shot-1", "shot-2")
    assert store.claims.take("engine", NOW) is None
    assert store.unfinished("engine") == 2
    assert first.request == request(seed=1)
    store.claims.finish(first, {"denoising": 2.0}, NOW + 5)
    done = store.job("shot-1")
    assert (done.state, done.seconds, done.ended_at) == ("done", {"denoising": 2.0}, NOW + 5)
    assert [event.kind for event in store.events("shot-1")] == ["queued", "running", "done"]
    assert store.unfinished("engine") == 1


def test_unchanged_changed_and_withdrawn_rows(store: JobStore) -> None:
    queued(store, job(1), job(2))
    store.claims.finish(claimed(store), {}, NOW)
    assert queued(store, job(1), job(2)) == {"unchanged": 2}
    assert queued(store, job(1), job(2), there=False) == {"again": 1, "unchanged": 1}
    assert queued(store, job(1, fingerprint="other")) == {"changed": 1}
    other = job(1, fingerprint="other", request=request(seed=99))
    assert queued(store, other) == {"unchanged": 1}
    assert store.job("shot-1").request.seed == 1  # as it was drawn when it was queued
    assert store.withdraw("shots.jsonl", ["shot-1"], NOW) == ["shot-2"]
    assert store.job("shot-2").state == "cancelled"
    assert queued(store, job(2)) == {"again": 1}


def test_a_claim_that_was_taken_over_changes_nothing(store: JobStore) -> None:
    queued(store, job(1))
    first = claimed(store)
    assert store.claims.take("engine", NOW + 10 * LEASE_S) is None  # its owner lives
    store.claims.owner = store.claims.owner.model_copy(update={"host": "another"})
    assert store.claims.take("engine", NOW + LEASE_S - 1) is None
    second = claimed(store, NOW + LEASE_S + 1)
    assert second.claims == 2
    for act in (
        lambda: store.claims.finish(first, {}, NOW),
        lambda: store.claims.fail(first, "x", NOW),
        lambda: store.claims.requeue(first, "x", NOW),
        lambda: store.claims.renew(first, "denoising", 1, NOW),
        lambda: store.claims.check(first),
    ):
        with pytest.raises(ClaimLostError, match="shot-1 was taken over"):
            act()
    assert store.claims.renew(second, "denoising", 3, NOW + 100) is False
    assert store.job("shot-1").steps_done == 3
    store.claims.owner = store.claims.owner.model_copy(update={"host": "a third"})
    assert store.claims.take("engine", NOW + 100 + LEASE_S - 1) is None


def test_a_changed_job_loses_its_claim(store: JobStore) -> None:
    queued(store, job(1))
    first = claimed(store)
    queued(store, job(1, fingerprint="other"))
    with pytest.raises(ClaimLostError):
        store.claims.finish(first, {}, NOW)
    assert claimed(store).claims == 2


OWNERS = [
    ({"pid": 2**22 - 1}, True),
    ({"started": 1}, True),
    ({"boot": "another"}, True),
    ({"host": "another"}, None),
    ({"host": "another", "pid": 2**22 - 1}, None),
    ({"namespace": 1, "pid": 2**22 - 1}, None),
    ({}, False),
]


@pytest.mark.parametrize(("changes", "ended"), OWNERS)
def test_whether_an_owner_has_ended(changes: dict[str, Any], ended: bool | None) -> None:
    here = Owner.this_process()
    assert here.model_copy(update=changes).ended(here) is ended


def test_a_zombie_has_ended() -> None:
    with subprocess.Popen([sys.executable, "-c", "pass"]) as child:
        while Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
            time.sleep(0.01)
        here = Owner.this_process()
        assert here.model_copy(update={"pid": child.pid}).ended(here)


def test_jobs_of_a_dead_process_are_taken_over_at_once(store: JobStore, tmp_path: Path) -> None:
    queued(store, job(1), job(2))
    code = (
        "import sys; from pathlib import Path; from longtake.serve.queue.job_store import JobStore;"
        f"JobStore(Path(sys.argv[1])).claims.take('engine', {NOW})"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    assert store.job("shot-1").state == "running"
    assert claimed(store).id == "shot-1"
    assert "taken over" in [event.kind for event in store.events("shot-1")]
    assert claimed(store).id == "shot-2"


def test_faults_are_counted_until_a_step_is_finished(store: JobStore) -> None:
    queued(store, job(1))
    now = NOW
    for step, faults in ((0, 1), (0, 2), (0, 3), (4, 1), (4, 2), (2, 3), (5, 1)):
        taken = claimed(store, now)
        fault = judge_fault(taken, RankError("rank 0 died"), step, max_faults=9)
        assert fault.retry_delay_s is not None
        store.claims.retry_later(taken, fault, now)
        again = store.job("shot-1")
        assert (again.faults, again.fault_step, again.state) == (faults, step, "queued")
        now += fault.retry_delay_s
        assert store.claims.take("engine", now - 0.1) is None  # it waits


def test_cancelling(store: JobStore) -> None:
    queued(store, job(1), job(2), job(3))
    running = claimed(store)
    store.claims.finish(claimed(store), {}, NOW)
    assert store.cancel(["shot-1", "shot-2", "shot-3"], NOW) == ["shot-2"]
    assert [each.state for each in store.jobs()] == ["running", "done", "cancelled"]
    assert store.claims.renew(running, "denoising", 1, NOW) is True
    store.claims.finish_cancelled(running, NOW)
    assert store.job("shot-1").state == "cancelled"
    assert store.retry(["shot-1", "shot-2"], NOW) == ["shot-1"]
    assert store.job("shot-1").cancelling is False
    with pytest.raises(RequestError, match="there is no job 'x' in "):
        store.cancel(["shot-1", "x"], NOW)
    assert store.job("shot-1").state == "queued"  # all of it or nothing


def test_a_job_being_cancelled_is_not_taken_over(store: JobStore) -> None:
    queued(store, job(1), job(2))
    claimed(store)
    store.cancel(["shot-1"], NOW)
    store.claims.owner = store.claims.owner.model_copy(update={"boot": "another"})
    assert claimed(store).id == "shot-2"
    assert store.job("shot-1").state == "cancelled"


def test_failed_jobs_are_retried(store: JobStore) -> None:
    queued(store, job(1), job(2))
    store.claims.fail(claimed(store), "out of memory", NOW)
    assert store.job("shot-1").error == "out of memory"
    assert store.claims.take("engine", NOW + 10 * LEASE_S).id == "shot-2"  # type: ignore[union-attr]
    assert store.retry([], NOW) == ["shot-1"]
    assert claimed(store).id == "shot-1"


def take_all(folder: str, barrier: Any) -> None:
    with JobStore(Path(folder)) as store:
        barrier.wait()
        while (taken := store.claims.take("engine", NOW)) is not None:
            store.note(taken, "taken by", str(os.getpid()), NOW)
            store.claims.finish(taken, {}, NOW)


def test_processes_and_threads_claim_each_job_once(store: JobStore, tmp_path: Path) -> None:
    queued(store, *map(job, range(60)))
    context = mp.get_context("fork")
    barrier = context.Barrier(3)
    processes = [context.Process(target=take_all, args=(str(tmp_path), barrier)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert {each.claims for each in store.jobs()} == {1}
    queued(store, *(job(number, fingerprint="other") for number in range(60)))
    ready = threading.Barrier(4)
    threads = [threading.Thread(target=take_all, args=(str(tmp_path), ready)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {(each.claims, each.state) for each in store.jobs()} == {(2, "done")}


def test_it_costs_little(store: JobStore) -> None:
    """CPU time of 1000 new jobs and of a rendered one. Waits for the disk, which other tests use
    meanwhile, count in the shortest of several times."""
    adding, rendering = _Clocks(), _Clocks()
    for first in range(0, 3000, 1000):
        jobs = [job(number) for number in range(first, first + 1000)]
        with adding.measured():
            queued(store, *jobs)
    for _ in range(100):
        with rendering.measured():
            claim = claimed(store)
            store.claims.renew(claim, "denoising", 5, NOW)
            store.claims.check(claim)
            store.claims.finish(claim, {"denoising": 1.0}, NOW)
    assert max(adding.cpu_s) < 1
    assert min(adding.wall_s) < 1
    assert statistics.median(rendering.cpu_s) < 0.02
    assert min(rendering.wall_s) < 0.02


class _Clocks:
    """CPU and wall-clock seconds of repeated work."""

    def __init__(self) -> None:
        self.cpu_s: list[float] = []
        self.wall_s: list[float] = []

    @contextmanager
    def measured(self) -> Iterator[None]:
        cpu_s, wall_s = time.process_time(), time.perf_counter()
        yield
        self.cpu_s.append(time.process_time() - cpu_s)
        self.wall_s.append(time.perf_counter() - wall_s)


def test_a_full_disk_is_one_line_and_loses_nothing(store: JobStore, tmp_path: Path) -> None:
    queued(store, job(1))
    database = store._database._connection
    pages = database.execute("PRAGMA page_count").fetchone()[0]
    database.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(EngineError, match=r"jobs.sqlite cannot be used \(database or disk is full"):
        queued(store, *map(job, range(2, 200)))
    database.execute("PRAGMA max_page_count = 100000")
    assert [each.id for each in store.jobs()] == ["shot-1"]
    assert queued(store, job(2)) == {"new": 1}


def test_folders_without_a_queue_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="holds no jobs"):
        JobStore(tmp_path)
    with pytest.raises(EngineError, match="cannot be written"):
        JobStore(tmp_path / "nowhere", create=True)
    (tmp_path / ".longtake").mkdir()
    path = tmp_path / ".longtake" / "jobs.sqlite"
    path.write_text("no database, but longer than the header of one is" * 10)
    with pytest.raises(RequestError, match=r"is damaged \(file is not a database\)"):
        JobStore(tmp_path)
    path.unlink()
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 7")
    database.close()
    with pytest.raises(RequestError, match=r"of another version of longtake \(7, not 2\)"):
        JobStore(tmp_path)


def test_records_can_be_printed(store: JobStore) -> None:
    queued(store, job(1))
    record = dataclasses.asdict(dataclasses.replace(claimed(store), request=None, owner=None))  # type: ignore[arg-type]
    assert json.loads(json.dumps(record))["id"] == "shot-1"
