"""Faults of jobs in a replica, without ranks."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from longtake.configs.commands.batch import BatchConfig
from longtake.configs.engine import EngineConfig
from longtake.configs.snapshot import SnapshotConfig
from longtake.engine.media.identity import Identity
from longtake.engine.media.snapshot import SnapshotPlan, write_snapshot
from longtake.engine.metadata import Metadata
from longtake.engine.rank_report import RankReport
from longtake.errors import EngineError, RankError, RequestError, Stopped
from longtake.parallel import ParallelDims
from longtake.pipelines.runtime.progress import Progress
from longtake.pipelines.runtime.snapshots import LoopState
from longtake.serve.queue import lease, retry_policy
from longtake.serve.queue.job_records import JobRecord, NewJob
from longtake.serve.queue.job_store import JobStore
from longtake.serve.queue.process_identity import Owner
from longtake.serve.runner import queue_writer, replica
from longtake.serve.runner.job_renderer import ReplicaSettings
from longtake.serve.runner.outputs import (
    is_inside,
    is_rendered,
    is_still_rendered,
    network_file_system,
    snapshot_path,
    sweep,
)
from longtake.serve.runner.replica import Replica
from longtake.serve.runner.scratch import scratch_folder
from longtake.serve.runner.watcher import Watcher
from tests.rendering import request

Act = Callable[["Ranks", Any, SnapshotPlan, Callable[[Progress], None]], None]


class Ranks:
    """Stand-in for a supervisor and its engine. The test decides how each rendering ends."""

    config = EngineConfig(model="tiny", dtype="float32")

    def __init__(self, *acts: Act | Exception | None) -> None:
        self._acts = list(acts)
        self.low_memory: list[bool] = []
        self.began_at: list[int] = []
        self.engine = self

    def start(self, on_progress: Any, stop_requested: Any) -> None:
        on_progress(Progress("loading"))

    def close(self) -> None:
        pass

    def num_frames_of(self, asked: Any) -> int:
        return int(asked.num_frames)

    def identity_of(self, asked: Any) -> Identity:
        return Identity.of(asked, self.config, "a model")

    def render(
        self,
        asked: Any,
        sink: Any,
        on_progress: Any,
        *,
        snapshots: Any,
        low_memory: bool,
        stop_requested: Any,
    ) -> Metadata:
        self.low_memory.append(low_memory)
        self.began_at.append(snapshots.steps_done)
        act = self._acts.pop(0) if self._acts else None
        if isinstance(act, Exception):
            raise act
        if act is not None:
            act(self, asked, snapshots, on_progress)
        for index in range(asked.num_frames):
            sink.frame(0, index, np.full((32, 48, 3), 0.5, np.float32))
        report = RankReport(0, "cpu", "none", {}, {}, 1, 0)
        metadata = Metadata(asked, self.config, ParallelDims(), {"denoising": 1.0}, [report], 1)
        metadata.as_json = lambda: {"request": {}}  # type: ignore[method-assign]
        return metadata


class Silent(Watcher):
    """Records notifications."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def progress(self, job: str, progress: Progress) -> None:
        pass

    def state(self, job: str, state: str, text: str) -> None:
        pass

    def note(self, text: str) -> None:
        self.notes.append(text)


def out_of_memory(phase: str = "decoding") -> RankError:
    error = RankError("rank 0 failed: OutOfMemoryError: CUDA out of memory")
    error.out_of_memory, error.phase, error.rank = True, phase, 0
    return error


def died_after(step: int) -> Act:
    """A rank dies after a number of saved steps."""

    def act(ranks: Ranks, asked: Any, plan: SnapshotPlan, on_progress: Any) -> None:
        state = LoopState(step, torch.zeros(1, 4, 3, 4, 6), {"sigmas": torch.ones(4)})
        write_snapshot(plan.path, plan.identity, state)
        raise RankError("rank 1 was killed by SIGKILL")

    return act


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Render jobs; returns their records and the notifications."""
    monkeypatch.setattr(replica, "_POLL_S", 0.001)
    monkeypatch.setattr(queue_writer, "_RETRY_S", 0.001)
    monkeypatch.setattr(retry_policy, "_MAX_DELAY_S", 0.001)

    def run(
        ranks: Ranks, *requests: Any, attempts: int = 3, stop: threading.Event | None = None
    ) -> tuple[list[JobRecord], Silent]:
        watcher = Silent()
        with JobStore(tmp_path, create=True) as store:
            jobs = [
                NewJob(f"shot-{at}", "x", at, f"shot-{at}.npy", "engine", asked, str(at))
                for at, asked in enumerate(requests)
            ]
            store.enqueue(jobs, lambda job: True, 0.0)
            one = Replica(
                store,
                ranks,  # type: ignore[arg-type]
                ReplicaSettings(
                    "engine", BatchConfig(attempts=attempts), SnapshotConfig(), tmp_path
                ),
                watcher,
                stop or threading.Event(),
            )
            one.run()
            assert one.failure is None
            return store.jobs(), watcher

    return run


def test_out_of_memory_in_decode_is_retried_with_low_memory(work: Any) -> None:
    """So are shots of the same size or larger, from the start; smaller ones are not."""
    small, large = request(num_frames=5), request(num_frames=9, seed=8)
    ranks = Ranks(None, out_of_memory(), None, None)
    jobs, _ = work(ranks, small, request(num_frames=9), large)
    assert [job.state for job in jobs] == ["done"] * 3
    # small, the one that fails, then the next (it waits), then itself again
    assert ranks.low_memory[0] is False
    assert ranks.low_memory[1:].count(False) == 1
    assert [job.low_memory for job in jobs] == [False, True, False]


def test_out_of_memory_elsewhere_is_retried_unchanged(work: Any) -> None:
    ranks = Ranks(out_of_memory("denoising"), None)
    jobs, _ = work(ranks, request())
    assert (jobs[0].state, ranks.low_memory) == ("done", [False, False])


def test_a_job_fails_after_repeated_faults(work: Any) -> None:
    died = RankError("rank 0 was killed by SIGSEGV\n  its last line")
    ranks = Ranks(died, died, died)
    jobs, _ = work(ranks, request())
    assert (jobs[0].state, jobs[0].claims) == ("failed", 3)
    assert jobs[0].error.endswith("its last line\n(after 3 faults in a row)")


def test_faults_with_progress_are_not_counted(work: Any) -> None:
    """A job survives more faults than attempts if each attempt makes progress."""
    ranks = Ranks(*(died_after(step) for step in (1, 1, 2, 2)), None)
    jobs, watcher = work(ranks, request())
    assert jobs[0].state == "done"
    assert ranks.began_at == [0, 1, 1, 2, 2]
    assert watcher.notes[0] == "shot-0: resumes after step 1 of 3"


def test_refused_requests_fail_at_once_except_with_pictures(work: Any) -> None:
    picture = request(image="/a.png", image_sha256="0" * 64, i2v_mode="stable", resize_mode="crop")
    ranks = Ranks(RequestError("no"), RequestError("cannot be read"), None)
    jobs, _ = work(ranks, request(), picture)
    assert [(job.state, job.claims) for job in jobs] == [("failed", 1), ("done", 2)]


def test_a_job_that_was_taken_over_is_not_published(work: Any, tmp_path: Path) -> None:
    """Its files are not published, and the next job is rendered."""

    def taken_over(ranks: Ranks, asked: Any, plan: Any, on_progress: Any) -> None:
        with JobStore(tmp_path) as other:
            database = other._database._connection
            database.execute("UPDATE jobs SET claims=9, state='done' WHERE id='shot-0'")

    ranks = Ranks(taken_over, None)
    jobs, watcher = work(ranks, request(), request(seed=2))
    assert [job.state for job in jobs] == ["done", "done"]
    assert watcher.notes == ["shot-0 was taken over by another process"]
    assert not (tmp_path / "shot-0.npy").exists()
    assert (tmp_path / "shot-1.npy").is_file()
    assert not [path for path in tmp_path.iterdir() if ".partial" in path.name]


def test_stopping_requeues_the_job(work: Any) -> None:
    stop = threading.Event()

    def stopped(ranks: Ranks, asked: Any, plan: Any, on_progress: Any) -> None:
        stop.set()
        on_progress(Progress("denoising", 1, 3))

    jobs, _ = work(Ranks(stopped), request(), stop=stop)
    assert (jobs[0].state, jobs[0].faults) == ("queued", 0)


def test_cancelling_ends_the_job_between_steps(
    work: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "_RENEWAL_PERIOD_S", 0.005)

    def cancelled(ranks: Ranks, asked: Any, plan: Any, on_progress: Any) -> None:
        with JobStore(tmp_path) as other:
            other.cancel(["shot-0"], 0.0)
        for _ in range(1000):
            threading.Event().wait(0.005)
            on_progress(Progress("denoising", 1, 3))

    jobs, _ = work(Ranks(cancelled), request())
    assert (jobs[0].state, jobs[0].error) == ("cancelled", "by request")


def test_output_published_before_a_crash_is_not_rendered_again(work: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "shot-0.npy", np.zeros(3))
    (tmp_path / "shot-0.json").write_text(json.dumps({"batch": {"fingerprint": "0"}}))
    ranks = Ranks()
    jobs, _ = work(ranks, request())
    assert (jobs[0].state, ranks.began_at) == ("done", [])


def test_output_of_an_earlier_version_is_not_rendered_again(work: Any, tmp_path: Path) -> None:
    """Its metadata has another name, and is removed when the shot is rendered again."""
    told = {"request": {}, "engine": {}, "batch": {"id": "shot-1", "fingerprint": "of before"}}
    (tmp_path / "shot-1.npy").write_bytes(b"of before")
    (tmp_path / "shot-1.json").write_text(json.dumps(told))
    ranks = Ranks()
    jobs, _ = work(ranks, request(), request(seed=2))
    assert ([job.state for job in jobs], ranks.began_at) == (["done", "done"], [0, 0])
    files = sorted(each.name for each in tmp_path.iterdir() if each.is_file())
    assert files == ["shot-0.npy", "shot-0.npy.json", "shot-1.npy", "shot-1.npy.json"]
    assert json.loads((tmp_path / "shot-1.npy.json").read_text())["batch"]["fingerprint"] == "1"


def test_a_finished_shot_needs_no_metadata(work: Any, tmp_path: Path) -> None:
    """The queue knows it. With the metadata of another job, it was replaced."""
    (job,), _ = work(Ranks(), request())
    assert is_still_rendered(tmp_path, job)
    (tmp_path / "shot-0.npy.json").write_text('{"batch": {"id": "b", "fingerprint": "b"}}')
    assert not is_still_rendered(tmp_path, job)
    (tmp_path / "shot-0.npy.json").unlink()
    assert is_still_rendered(tmp_path, job) and not is_rendered(tmp_path, job)
    (tmp_path / "shot-0.npy").unlink()
    assert not is_still_rendered(tmp_path, job)


@pytest.mark.parametrize("taken", ["shot-0.npy", "shot-0.npy.json"])
def test_foreign_files_are_not_replaced(work: Any, tmp_path: Path, taken: str) -> None:
    """One exists before the shot is rendered, the other appears meanwhile."""

    def put_there(ranks: Ranks, asked: Any, plan: Any, on_progress: Any) -> None:
        (tmp_path / taken.replace("0", "1")).write_text("mine")

    (tmp_path / taken).write_text("mine")
    ranks = Ranks(put_there)
    jobs, _ = work(ranks, request(), request(seed=2))
    assert [(job.state, job.claims) for job in jobs] == [("failed", 1), ("failed", 1)]
    assert f"{taken} exists already, and this batch did not make it" in jobs[0].error
    assert jobs[1].error.endswith(f"put there meanwhile: this video is {tmp_path}/shot-1-2.npy")
    for name in (taken, taken.replace("0", "1")):
        assert (tmp_path / name).read_text() == "mine"
    assert (tmp_path / "shot-1-2.npy.json").is_file()
    assert len(ranks.began_at) == 1


def test_a_link_out_of_the_folder_is_refused(work: Any, tmp_path: Path) -> None:
    with JobStore(tmp_path, create=True) as store:
        job = NewJob("a", "x", 0, "out/a.npy", "engine", request(), "f")
        store.enqueue([job], lambda job: True, 0.0)
        assert not is_rendered(tmp_path, store.job("a"))
    (tmp_path / "out").symlink_to("/")
    jobs, _ = work(Ranks())
    assert jobs[0].state == "failed"
    assert "leaves" in jobs[0].error
    assert is_inside(tmp_path, tmp_path / "x" / "y")


def test_unused_snapshots_are_removed(work: Any, tmp_path: Path) -> None:
    jobs, _ = work(Ranks(EngineError("once"), None), request(), request(seed=2), attempts=1)
    assert [job.state for job in jobs] == ["failed", "done"]
    kept = [snapshot_path(tmp_path, job) for job in jobs]
    for path in [*kept, kept[0].with_name("ffffffffffff.safetensors")]:
        path.write_bytes(b"x")
    with JobStore(tmp_path) as store:
        sweep(store)
    assert [path.name for path in kept[0].parent.iterdir()] == [kept[0].name]


def test_scratch_folders_of_ended_processes_are_removed(tmp_path: Path) -> None:
    """Folders with other names are kept, whatever they contain."""
    here = Owner.this_process()
    (tmp_path / ".longtake").mkdir()
    parent = tmp_path / ".longtake" / "ranks"
    others = {
        "1-1": here.model_copy(update={"started": 1}).model_dump_json(),
        "1-2": here.model_copy(update={"namespace": 1}).model_dump_json(),
        "1-3": "",
        "mine": "",
    }
    for name, content in others.items():
        (parent / name).mkdir(parents=True)
        (parent / name / "owner.json").write_text(content)
    (parent / "1-4").mkdir()
    with scratch_folder(tmp_path) as own:
        left = sorted(path.name for path in parent.iterdir())
        assert left == sorted(["1-4", "1-2", "mine", own.name])
    assert not own.exists()


def test_a_local_disk_is_not_a_network_file_system(tmp_path: Path) -> None:
    assert network_file_system(tmp_path) == ""


def test_stopping_is_not_a_fault(work: Any) -> None:
    jobs, _ = work(Ranks(Stopped("by itself"), None), request())
    assert (jobs[0].state, jobs[0].faults) == ("done", 0)
