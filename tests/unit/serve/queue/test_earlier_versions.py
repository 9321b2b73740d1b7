"""Queues of version 0.1.0 are read, and their jobs resume."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest

from longtake.serve.queue.claims import LEASE_S
from longtake.serve.queue.job_records import JobRecord, NewJob
from longtake.serve.queue.job_store import JobStore

SAMPLES = Path(__file__).parents[3] / "samples" / "0.1.0"
NOW = 1_000_000.0


@pytest.fixture(params=["jobs.sqlite", "jobs-schema-1.sqlite"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    (tmp_path / ".longtake").mkdir()
    shutil.copy(SAMPLES / request.param, tmp_path / ".longtake" / "jobs.sqlite")
    return tmp_path


def states(store: JobStore) -> dict[str, str]:
    return {job.id: job.state for job in store.jobs()}


def as_new(job: JobRecord) -> NewJob:
    """The row of the shots file that a job was made from."""
    return NewJob(**{each.name: getattr(job, each.name) for each in dataclasses.fields(NewJob)})


STATES = {name: name for name in ("done", "failed", "running", "queued", "cancelled")}


def test_an_old_queue_is_listed_without_being_changed(folder: Path) -> None:
    path = folder / ".longtake" / "jobs.sqlite"
    content = path.read_bytes()
    with JobStore(folder, read_only=True) as store:
        assert states(store) == STATES
        done, running = store.job("done"), store.job("running")
        assert done.seconds == {"text": 0.1, "denoising": 2.0}
        assert [each.kind for each in store.events("done")] == [
            "queued",
            "running",
            "snapshot",
            "done",
        ]
        assert running.owner is not None
        assert (running.owner.host, running.owner.started) == ("studio", 5678)
        failed = store.job("failed")
        assert (failed.faults, failed.fault_step, failed.low_memory) == (1, 1, True)
    assert path.read_bytes() == content


def test_jobs_of_an_old_queue_resume(folder: Path) -> None:
    with JobStore(folder) as store:
        assert store.retry([], NOW) == ["failed"]
        taken = [store.claims.take("engine", NOW) for _ in range(4)]
        # The lease of the other host's worker has expired.
        assert [job and job.id for job in taken] == ["failed", "running", "queued", None]
        for job in taken[:3]:
            assert job is not None
            store.claims.finish(job, {}, NOW)
        assert states(store) == {**dict.fromkeys(STATES, "done"), "cancelled": "cancelled"}


def test_a_worker_of_another_host_keeps_its_lease(folder: Path) -> None:
    with JobStore(folder) as store:
        end = store.job("running").lease_until
        assert end == 1012.0 + LEASE_S
        assert [store.claims.take("engine", end - 1) for _ in range(2)][1] is None


def test_unchanged_rows_of_an_old_queue_are_not_rendered_again(folder: Path) -> None:
    with JobStore(folder) as store:
        rows = [as_new(job) for job in store.jobs()]
        counts = store.enqueue(rows, lambda job: True, NOW)
        assert counts == {"new": 0, "changed": 0, "again": 0, "unchanged": 5}
        assert states(store) == STATES
