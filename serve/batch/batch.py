"""Renders a shots file into a folder, on replicas that share a queue."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from typing import Any

from longtake.configs.commands.batch import BatchConfig
from longtake.configs.engine import EngineConfig
from longtake.configs.request import ResolvedRequest
from longtake.configs.snapshot import SnapshotConfig
from longtake.engine.engine import VideoEngine
from longtake.engine.supervisor import Supervisor
from longtake.errors import EngineError, LongtakeError, RequestError
from longtake.serve.batch.report import check_reports, write_report
from longtake.serve.batch.shot_checker import Shot
from longtake.serve.batch.shot_file import ShotFile, replica_configs
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
from longtake.serve.runner.watcher import BatchWatcher

_POLL_S = 0.2
_SETTLE_S = 0.5


class Batch:
    """A batch: a shots file and its output folder. The constructor only checks the model.

    Args:
        source: Path of the shots file.
        folder: Output folder; created by :meth:`run` if missing.
        config: The model, and the devices of each replica.
        settings: Settings of the batch.
        snapshots: How often snapshots are written.
        defaults: Request fields for rows without them.

    Attributes:
        engine: Resolves the requests; has no ranks.

    Raises:
        RefusedInputError: The model, the layout or the folder cannot be used.
    """

    def __init__(
        self,
        source: Path,
        folder: Path,
        config: EngineConfig,
        settings: BatchConfig,
        snapshots: SnapshotConfig,
        defaults: dict[str, Any],
    ) -> None:
        self._source = source
        self._folder = folder
        self._settings = settings
        self._snapshots = snapshots
        self.engine = VideoEngine(config, isolated=True)
        # From the resolved config: a branch of the hub may move before the ranks load it.
        self._configs = replica_configs(self.engine.config, settings.replicas)
        self._file = ShotFile(source, folder, self.engine, defaults)
        self._ids: list[str] = []
        self._changed = _change_detector(source)
        self._digest = hashlib.sha256(self.engine.identity_part().encode()).hexdigest()

    def check(self) -> list[Shot]:
        """Read and check all rows.

        Raises:
            InvalidRowsError: Some rows cannot be rendered.
            RequestError: The file cannot be read, or has no rows.
        """
        shots = list(self._file.shots())
        if not shots and (self._ids or not self._settings.watch):
            raise RequestError(f"{self._source} has no shots")
        return shots

    def run(self, shots: Sequence[Shot], watcher: BatchWatcher) -> list[JobRecord]:
        """Queue the shots, and render those without output until no work is left.

        However it ends, the reports are written.

        Args:
            shots: The shots to render, from :meth:`check`.
            watcher: Observer of the batch.

        Returns:
            The jobs of the file, in its order.

        Raises:
            RequestError: The folder cannot be written, or a foreign file has the name of a report.
            KeyboardInterrupt: After all ranks have ended; the next run resumes unfinished jobs.
            EngineError: No ranks can be started, or the queue cannot be written.
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
                if failed:  # an empty list would retry the jobs of other files, too
                    store.retry(failed, time.time())
            with scratch_folder(self._folder) as scratch:
                try:
                    self._work(store, watcher, scratch, [shot.request for shot in shots])
                except BaseException:
                    with suppress(EngineError):  # raise the first error, not this one
                        self._report(store, watcher, scratch)
                    raise
                return self._report(store, watcher, scratch)

    def _report(self, store: JobStore, watcher: BatchWatcher, scratch: Path) -> list[JobRecord]:
        jobs = self._jobs(store)
        watcher.ended(jobs, write_report(self._folder, jobs, scratch))
        return jobs

    def _jobs(self, store: JobStore) -> list[JobRecord]:
        """The jobs of the current rows of the file."""
        ids = set(self._ids)
        return [job for job in store.jobs() if job.id in ids]

    def _enqueue(self, store: JobStore, shots: Sequence[Shot], watcher: BatchWatcher) -> None:
        source, now = str(self._source.absolute()), time.time()
        jobs = [
            NewJob(
                shot.id, source, position, shot.output, self._digest, shot.request, shot.fingerprint
            )
            for position, shot in enumerate(shots)
        ]
        self._ids = [each.id for each in jobs]
        known = {each.id for each in store.jobs()}
        jobs = [
            job if job.id in known else with_rendered_request(self._folder, job) for job in jobs
        ]
        counts = store.enqueue(jobs, lambda job: is_still_rendered(self._folder, job), now)
        withdrawn = store.withdraw(source, self._ids, now)
        summary = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
        watcher.note(
            f"{len(jobs)} shots: {summary or 'none'}"
            + (f", {len(withdrawn)} withdrawn" if withdrawn else "")
        )

    def _work(
        self,
        store: JobStore,
        watcher: BatchWatcher,
        scratch: Path,
        requests: Sequence[ResolvedRequest],
    ) -> None:
        stop = threading.Event()
        settings = ReplicaSettings(self._digest, self._settings, self._snapshots, scratch)
        replicas = [
            Replica(
                store,
                Supervisor(config, scratch, watcher.note, stop.wait, requests, len(self._configs)),
                settings,
                watcher,
                stop,
            )
            for config in self._configs
        ]
        # No plain threads: Python 3.11 marks a thread as ended if a signal interrupts its join().
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
        """Wait for all replicas, and meanwhile queue the rows added to the file."""
        queue_watch = QueueWatch(store, watcher.note)
        while wait(running, _POLL_S).not_done:
            queue_watch.look()
            if self._settings.watch and self._changed():
                try:
                    self._enqueue(store, self.check(), watcher)
                except RequestError as error:
                    watcher.note(str(error))


def _change_detector(path: Path) -> Callable[[], bool]:
    """A function that returns True once after each change of a file, when it has settled."""

    def stamp() -> tuple[int, int] | None:
        try:
            stat = path.stat()
        except OSError:
            return None
        return stat.st_mtime_ns, stat.st_size

    reported = last = stamp()
    since = time.monotonic()

    def changed() -> bool:
        nonlocal reported, last, since
        now = stamp()
        if now != last:
            last, since = now, time.monotonic()
        if now is None or now == reported or time.monotonic() - since < _SETTLE_S:
            return False
        reported = now
        return True

    return changed
