"""A file of shots, rendered into a folder by groups of ranks that share one queue."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from typing import Any

from longtake.configs.batch import BatchConfig
from longtake.configs.engine import EngineConfig
from longtake.configs.snapshot import SnapshotConfig
from longtake.engine.engine import VideoEngine
from longtake.engine.supervisor import Supervisor
from longtake.errors import EngineError, LongtakeError, RequestError
from longtake.serve.batch.report import check_reports, write_report
from longtake.serve.batch.shot_checker import Shot
from longtake.serve.batch.shot_file import ShotFile, of_replicas
from longtake.serve.queue.job_records import JobRecord, NewJob
from longtake.serve.queue.job_store import JobStore
from longtake.serve.queue.queue_watch import QueueWatch
from longtake.serve.runner.job_renderer import ReplicaSettings
from longtake.serve.runner.outputs import (
    is_still_rendered,
    network_file_system,
    sweep,
    with_rendered_request,
)
from longtake.serve.runner.replica import Replica
from longtake.serve.runner.scratch import prepare_folder, scratch_folder
from longtake.serve.runner.watcher import Watcher

_LOOK_AGAIN_S = 0.2
_LEFT_ALONE_S = 0.5


class BatchWatcher(Watcher):
    """Is told how a batch gets on, too."""

    def ended(self, jobs: Sequence[JobRecord], reports: Sequence[Path]) -> None:
        """The batch is over, if not done, and reports on it."""


class Batch:
    """A file of shots and its folder. Building one checks the model; nothing is loaded.

    Args:
        source: the file of shots.
        folder: of the outputs; made if it is not there.
        config: the model, and the devices of each replica.
        settings: of the batch.
        how_often: snapshots are written.
        defaults: fields of a request that rows need not name.

    Raises:
        RefusedInputError: the model, the layout, or the folder cannot be used.
    """

    def __init__(
        self,
        source: Path,
        folder: Path,
        config: EngineConfig,
        settings: BatchConfig,
        how_often: SnapshotConfig,
        defaults: dict[str, Any],
    ) -> None:
        self._source = source
        self._folder = folder
        self._settings = settings
        self._how_often = how_often
        self.engine = VideoEngine(config, isolated=True)
        # As they are settled here: a branch of a hub may move before the ranks load it.
        self._configs = of_replicas(self.engine.config, settings.replicas)
        self._file = ShotFile(source, folder, self.engine, defaults)
        self._ids: list[str] = []
        self._changed = _change_of(source)
        self._digest = hashlib.sha256(self.engine.identity_part().encode()).hexdigest()

    def check(self) -> list[Shot]:
        """Read and check all rows.

        Raises:
            InvalidRowsError: some cannot be rendered.
            RequestError: the file cannot be read, or has no rows.
        """
        shots = list(self._file.shots())
        if not shots and (self._ids or not self._settings.watch):
            raise RequestError(f"{self._source} has no shots")
        return shots

    def run(self, shots: Sequence[Shot], watcher: BatchWatcher) -> list[JobRecord]:
        """Queue the shots and render what is not there yet, until nothing is left to do.

        Returns:
            How the file's jobs stand then, in its order.

        Raises:
            RequestError: the folder cannot be written, or holds reports of something else.
            KeyboardInterrupt: after all ranks have ended; what was begun goes on the next time.
            EngineError: no ranks can be started, or the queue cannot be written.
        """
        prepare_folder("output", self._folder)
        check_reports(self._folder)
        if kind := network_file_system(self._folder):
            watcher.note(f"{self._folder} is on {kind}: no other host may work on it meanwhile")
        with JobStore(self._folder, create=True) as store:
            self._enqueue(store, shots, watcher)
            sweep(store)
            if self._settings.retry_failed:
                failed = [each.id for each in self._jobs(store) if each.state == "failed"]
                if failed:  # none would be all
                    store.retry(failed, time.time())
            with scratch_folder(self._folder) as scratch:
                try:
                    self._work(store, watcher, scratch)
                except BaseException:
                    with suppress(EngineError):  # the first error is the one to tell
                        self._report(store, watcher, scratch)
                    raise
                return self._report(store, watcher, scratch)

    def _report(self, store: JobStore, watcher: BatchWatcher, scratch: Path) -> list[JobRecord]:
        jobs = self._jobs(store)
        watcher.ended(jobs, write_report(self._folder, jobs, scratch))
        return jobs

    def _jobs(self, store: JobStore) -> list[JobRecord]:
        """Those of the file as it stands."""
        named = set(self._ids)
        return [job for job in store.jobs() if job.id in named]

    def _enqueue(self, store: JobStore, shots: Sequence[Shot], watcher: BatchWatcher) -> None:
        source, now = str(self._source.absolute()), time.time()
        jobs = [
            NewJob(shot.id, source, at, shot.output, self._digest, shot.request, shot.fingerprint)
            for at, shot in enumerate(shots)
        ]
        self._ids = [each.id for each in jobs]
        known = {each.id for each in store.jobs()}
        jobs = [
            job if job.id in known else with_rendered_request(self._folder, job) for job in jobs
        ]
        counts = store.enqueue(jobs, lambda job: is_still_rendered(self._folder, job), now)
        gone = store.withdraw(source, self._ids, now)
        told = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
        watcher.note(
            f"{len(jobs)} shots: {told or 'none'}" + (f", {len(gone)} withdrawn" if gone else "")
        )

    def _work(self, store: JobStore, watcher: BatchWatcher, scratch: Path) -> None:
        stop = threading.Event()
        settings = ReplicaSettings(self._digest, self._settings, self._how_often, scratch)
        replicas = [
            Replica(
                store,
                Supervisor(config, scratch, watcher.note, stop.wait),
                settings,
                watcher,
                stop,
            )
            for config in self._configs
        ]
        # Not threads that are joined: to Python 3.11 one whose join() a signal ends has ended, too.
        with ThreadPoolExecutor(len(replicas)) as pool:
            try:
                running = [pool.submit(each.run) for each in replicas]
                self._wait(store, running, watcher)
            finally:
                stop.set()
        failures = [each.failure for each in replicas if each.failure is not None]
        for failure in failures:
            watcher.note(str(failure).partition("\n")[0])
        if failures and store.unfinished(self._digest):
            cause = failures[0].__cause__
            raise cause if isinstance(cause, LongtakeError) else failures[0]

    def _wait(
        self, store: JobStore, running: Sequence[Future[None]], watcher: BatchWatcher
    ) -> None:
        """Until all have ended; meanwhile, queue the rows that are added to the file."""
        queue_watch = QueueWatch(store, watcher.note)
        while wait(running, _LOOK_AGAIN_S).not_done:
            queue_watch.look()
            if self._settings.watch and self._changed():
                try:
                    self._enqueue(store, self.check(), watcher)
                except RequestError as error:
                    watcher.note(str(error))


def _change_of(path: Path) -> Callable[[], bool]:
    """Says whether a file was changed since it was last said, and then left alone for a while."""

    def seen() -> tuple[int, int] | None:
        try:
            stat = path.stat()
        except OSError:
            return None
        return stat.st_mtime_ns, stat.st_size

    told = last = seen()
    since = time.monotonic()

    def changed() -> bool:
        nonlocal told, last, since
        now = seen()
        if now != last:
            last, since = now, time.monotonic()
        if now is None or now == told or time.monotonic() - since < _LEFT_ALONE_S:
            return False
        told = now
        return True

    return changed
