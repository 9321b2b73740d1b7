"""A queue or a disk that fails at any one write of a job's life: the job is done in the end, once,
with the same bytes, and no process is started again for it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from longtake.configs.commands.batch import BatchConfig
from longtake.configs.snapshot import SnapshotConfig
from longtake.engine.media.video_writer import VideoFiles
from longtake.errors import EngineError, RankError, RequestError
from longtake.pipelines.runtime.progress import Progress
from longtake.serve.queue import lease, retry_policy
from longtake.serve.queue.claims import ClaimLostError
from longtake.serve.queue.job_records import NewJob
from longtake.serve.queue.job_store import JobStore
from longtake.serve.runner import job_renderer, queue_writer, replica
from longtake.serve.runner.filmstrip import Filmstrip
from longtake.serve.runner.job_renderer import ReplicaSettings
from longtake.serve.runner.replica import Replica
from tests.rendering import request
from tests.unit.serve.runner.test_replica import Act, Ranks, Silent

NOW = 1_000_000.0
MOST_WRITES = 8
"""Of one job's life, at least."""

FULL = EngineError("jobs.sqlite cannot be used (database or disk is full): free some space")


class Told(Silent):
    """Records the states of jobs."""

    def __init__(self) -> None:
        super().__init__()
        self.states: list[str] = []
        self.costs = 0

    def state(self, job: str, state: str, text: str) -> None:
        self.states.append(state)

    def rendered(self, job: Any, metadata: Any) -> None:
        self.costs += 1


class Queue:
    """One job in a queue whose transactions fail as a test says.

    Attributes:
        transactions: so many were begun.
        fails: whether one of that number does: at its start if the number is odd, else where it
            would be committed.
    """

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.store = JobStore(folder, create=True)
        self.told = Told()
        self.stop = threading.Event()
        self.transactions = 0
        self.fails: Callable[[int], bool] = lambda number: False
        self._begin = self.store._database.transaction
        job = NewJob("shot", "x", 0, "shot.npy", "engine", request(), "f")
        self.store.enqueue([job], lambda job: True, 0.0)
        monkeypatch.setattr(self.store._database, "transaction", self._transaction)

    @contextmanager
    def _transaction(self, waits_for: Any = ()) -> Iterator[Any]:
        self.transactions += 1
        number = self.transactions
        if self.fails(number) and number % 2:
            raise FULL
        with self._begin(waits_for) as database:
            yield database
            if self.fails(number):
                raise FULL

    def work(self, ranks: Any, *, watch: bool = False) -> Exception | None:
        """Have a worker live; returns what ended it."""
        batch = BatchConfig(attempts=3, watch=watch)
        settings = ReplicaSettings("engine", batch, SnapshotConfig(), self.store.folder)
        worker = Replica(self.store, ranks, settings, self.told, self.stop)
        worker.run()
        return worker.failure

    @property
    def state(self) -> str:
        return self.store.job("shot").state


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Queue]:
    monkeypatch.setattr(replica, "_POLL_S", 0.001)
    monkeypatch.setattr(queue_writer, "_RETRY_S", 0.001)
    monkeypatch.setattr(retry_policy, "_MAX_DELAY_S", 0.001)
    made = Queue(tmp_path, monkeypatch)
    yield made
    made.store.close()


def cancelled_by(queue: Queue) -> Act:
    def act(ranks: Ranks, asked: Any, plan: Any, on_progress: Any) -> None:
        with JobStore(queue.store.folder) as other:
            other.cancel(["shot"], 0.0)
        for _ in range(2000):
            threading.Event().wait(0.005)
            on_progress(Progress("denoising", 1, 3))

    return act


LIVES: dict[str, tuple[Callable[[Queue], list[Any]], str, int]] = {
    "rendered": (lambda queue: [None], "done", 1),
    "a rank dies": (lambda queue: [RankError("rank 0 died"), None], "done", 2),
    "refused": (lambda queue: [RequestError("no")], "failed", 1),
    "cancelled": (lambda queue: [cancelled_by(queue)], "cancelled", 1),
}
"""What ranks do, how the job ends, and how often it is rendered."""


@pytest.mark.parametrize("life", LIVES)
def test_failed_writes_are_retried(
    queue: Queue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, life: str
) -> None:
    """Each write fails in turn, and so does the one after it."""
    monkeypatch.setattr(lease, "_RENEWAL_PERIOD_S", 0.005)
    acts, state, renderings = LIVES[life]
    for first in range(1, MOST_WRITES):
        begun = queue.transactions
        queue.fails = lambda number, at=begun + first: number in (at, at + 1)  # type: ignore[misc]
        ranks = Ranks(*acts(queue))
        assert queue.work(ranks) is None
        assert (queue.state, len(ranks.began_at)) == (state, renderings)
        assert queue.told.states.count(state) == 1
        queue.fails = lambda number: False
        queue.told.states.clear()
        if state == "done":
            assert np.load(tmp_path / "shot.npy").shape == (9, 32, 48, 3)
            (tmp_path / "shot.npy").unlink()
            (tmp_path / "shot.npy.json").unlink()
        job = NewJob("shot", "x", 0, "shot.npy", "engine", request(), f"{first}")
        queue.store.enqueue([job], lambda job: True, 0.0)


@pytest.mark.parametrize("last", range(1, MOST_WRITES))
def test_a_worker_that_ends_releases_its_claim(
    queue: Queue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: int
) -> None:
    """The queue cannot be written from some moment on, and the worker gives up; then there is room,
    and the next worker of the same process goes on: what is rendered is not rendered again."""
    monkeypatch.setattr(queue_writer, "_GIVE_UP_S", 0.0)
    begun = queue.transactions
    queue.fails = lambda number: number >= begun + last
    first, second = Ranks(None), Ranks(None)
    failure = queue.work(first)
    assert failure is not None or queue.state == "done"
    queue.fails = lambda number: False
    whole = (tmp_path / "shot.npy").exists()
    assert queue.work(second) is None
    assert queue.state == "done"
    assert len(second.began_at) == (0 if whole else 1)
    assert queue.told.states.count("done") == 1
    assert len(np.load(tmp_path / "shot.npy")) == 9
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []


def test_a_job_whose_worker_has_ended_is_cancelled_at_once(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue_writer, "_GIVE_UP_S", 0.0)

    def fill_the_disk(*rest: Any) -> None:
        queue.fails = lambda number: True

    assert queue.work(Ranks(fill_the_disk)) is not None
    queue.fails = lambda number: False
    assert queue.state == "running"  # which nobody could change
    queue.store.cancel(["shot"], NOW)
    assert queue.state == "cancelled"


def test_a_server_keeps_its_ranks_while_the_disk_is_full(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits without a limit, and logs that periodically."""
    monkeypatch.setattr(queue_writer, "_GIVE_UP_S", 0.0)
    tries = 0

    def full(number: int) -> bool:
        nonlocal tries
        tries += 1
        return tries < 30

    def fill_the_disk(*rest: Any) -> None:
        queue.fails = full

    def ended(job: str, state: str, text: str) -> None:
        if state == "done":
            queue.stop.set()

    monkeypatch.setattr(queue.told, "state", ended)
    ranks = Ranks(fill_the_disk)
    assert queue.work(ranks, watch=True) is None
    assert (queue.state, len(ranks.began_at), queue.told.costs) == ("done", 1, 1)
    assert set(queue.told.notes) == {str(FULL)}


def test_an_unexpected_error_releases_the_claim(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unheard_of(self: Any, *rest: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(lease.Lease, "__enter__", unheard_of)
    assert isinstance(queue.work(Ranks()), MemoryError)
    assert queue.state == "queued"


def test_another_queue_of_the_same_process_leaves_living_workers_alone(
    queue: Queue, tmp_path: Path
) -> None:
    """Only their lease shows that they are alive."""
    job = queue.store.claims.take("engine", NOW)
    assert job is not None
    with JobStore(tmp_path) as other:
        assert other.claims.take("engine", NOW + 59) is None
        queue.store.claims.renew(job, "denoising", 1, NOW + 30)
        assert other.claims.take("engine", NOW + 89) is None
        taken = other.claims.take("engine", NOW + 91)
        assert taken is not None
        assert taken.claims == 2
        with pytest.raises(ClaimLostError):
            queue.store.claims.finish(job, {}, NOW)


def once(act: Callable[..., Any], error: Exception, *, before: bool) -> Callable[..., Any]:
    """A function that fails the first time: before it does its work, or after."""
    failed = False

    def wrapped(*arguments: Any, **named: Any) -> Any:
        nonlocal failed
        fails, failed = not failed, True
        if fails and before:
            raise error
        answer = act(*arguments, **named)
        if fails:
            raise error
        return answer

    return wrapped


NO_SPACE = EngineError("shot.npy cannot be written: No space left on device")


@pytest.mark.parametrize(
    ("owner", "name", "error", "before", "renderings"),
    [
        (VideoFiles, "publish", NO_SPACE, True, 2),
        (VideoFiles, "publish", NO_SPACE, False, 1),  # it is there, and is found to be
        (Filmstrip, "save", NO_SPACE, True, 1),
        (job_renderer, "filmstrip_path", OSError(28, "No space left on device"), True, 1),
        (job_renderer, "snapshot_path", OSError(28, "No space left on device"), True, 1),
        (replica, "drop_snapshot", OSError(5, "Input/output error"), True, 1),
    ],
)
def test_files_that_cannot_be_written(
    queue: Queue,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    owner: Any,
    name: str,
    error: Exception,
    before: bool,
    renderings: int,
) -> None:
    monkeypatch.setattr(owner, name, once(getattr(owner, name), error, before=before))
    ranks = Ranks(None, None)
    assert queue.work(ranks) is None
    assert (queue.state, len(ranks.began_at)) == ("done", renderings)
    assert queue.told.states.count("done") == 1
    assert len(np.load(tmp_path / "shot.npy")) == 9
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []
