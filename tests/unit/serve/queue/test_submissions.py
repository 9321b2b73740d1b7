"""Jobs added by the clients of a server."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from longtake.serve.queue.job_records import JobRecord, NewJob
from longtake.serve.queue.job_store import JobStore
from longtake.serve.queue.submissions import (
    BeingDeletedError,
    OtherRequestError,
    QueueFullError,
    Submissions,
)
from tests.rendering import request

NOW = 1_000_000.0


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Submissions]:
    with Submissions(tmp_path, create=True) as opened:
        yield opened


def job(name: str, **changes: Any) -> NewJob:
    values: dict[str, Any] = dict(
        id=name,
        source="serve one",
        position=0,
        output=f"{name}.mp4",
        engine="engine",
        request=request(),
        fingerprint=name,
        model="demo",
    )
    return NewJob(**{**values, **changes})


def added(store: Submissions, name: str, **changes: Any) -> tuple[JobRecord, bool]:
    return store.add(job(name, **changes), NOW, most_waiting=4, most_of_source=3)


def test_jobs_are_queued_in_order_and_once(store: Submissions) -> None:
    names = ["c", "a", "b"]
    for name in names:
        assert added(store, name)[1]
        assert not added(store, name)[1]
    with pytest.raises(OtherRequestError):
        added(store, "a", fingerprint="another")
    taken = [store.claims.take("engine", NOW) for _ in names]
    assert [each.id for each in taken if each] == names


def test_a_full_queue_refuses_jobs(store: Submissions) -> None:
    for name in "abc":
        added(store, name)
    with pytest.raises(QueueFullError, match="3 of your videos wait"):
        added(store, "d")
    added(store, "d", source="serve other")
    with pytest.raises(QueueFullError, match="4 videos wait"):
        added(store, "e", source="serve third")
    assert store.claims.take("engine", NOW)  # what runs does not wait
    added(store, "e", source="serve third")


def test_pages(store: Submissions) -> None:
    for name in "abc":
        added(store, name)
    added(store, "x", source="a batch's file")
    newest, more = store.page(None, 2, newest_first=True)
    assert ([each.id for each in newest], more) == (["c", "b"], True)
    rest, more = store.page(newest[-1].position, 2, newest_first=True)
    assert ([each.id for each in rest], more) == (["a"], False)
    oldest, _ = store.page(None, 9, newest_first=False)
    assert [each.id for each in oldest] == ["a", "b", "c"]
    assert store.find("x") is None


def test_deleted_jobs_are_removed_after_they_end(store: Submissions) -> None:
    added(store, "a")
    added(store, "b")
    running = store.claims.take("engine", NOW)
    assert running is not None
    for name in "ab":
        store.delete(name, NOW)
        assert store.find(name) is None
    assert [each.id for each in store.removable(0)] == ["b"]
    with pytest.raises(BeingDeletedError):  # its files are still being written
        added(store, "a")
    assert store.claims.renew(running, "denoising", 1, NOW)
    store.claims.finish_cancelled(running, NOW)
    store.forget(store.removable(0))
    assert store.jobs() == []
    assert store.events("a") == []
    assert added(store, "a")[1]


def test_old_jobs_are_removed(store: Submissions) -> None:
    added(store, "a")
    done = store.claims.take("engine", NOW)
    assert done is not None
    store.claims.finish(done, {}, NOW)
    added(store, "b")
    assert store.removable(NOW) == []
    assert [each.id for each in store.removable(NOW + 1)] == ["a"]


def test_another_engine_adopts_queued_jobs(store: Submissions) -> None:
    added(store, "a")
    added(store, "b", model="another")
    added(store, "c", source="a batch's file")
    assert store.adopt("newer", "demo", NOW) == 1
    taken = store.claims.take("newer", NOW)
    assert taken is not None
    assert taken.id == "a"
    other = store.job("b")
    assert (other.state, other.error.startswith("it waited for the model another")) == (
        "failed",
        True,
    )
    assert store.job("c").engine == "engine"


def test_an_older_file_is_migrated(tmp_path: Path) -> None:
    with Submissions(tmp_path, create=True) as store:
        added(store, "a")
    path = tmp_path / ".longtake" / "jobs.sqlite"
    database = sqlite3.connect(path)
    for name in ("model", "deleted"):
        database.execute(f"ALTER TABLE jobs DROP COLUMN {name}")
    database.execute("PRAGMA user_version = 1")
    database.commit()
    database.close()
    with JobStore(tmp_path, read_only=True) as store_read:  # and can be read as it is
        assert (store_read.job("a").model, store_read.job("a").deleted) == ("", False)
    with Submissions(tmp_path) as store:
        assert store.job("a").model == ""
        store.delete("a", NOW)
        assert store.find("a") is None
