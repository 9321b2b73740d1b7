"""One group of ranks that works on a folder's queue: claims a job, renders it, takes the next."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from longtake.configs.batch import BatchConfig
from longtake.configs.snapshot import SnapshotConfig
from longtake.engine.media.output_files import output_paths
from longtake.engine.media.snapshot import drop_snapshot, plan_snapshots
from longtake.engine.media.video_writer import VideoFiles
from longtake.engine.supervisor import Supervisor
from longtake.engine.video import Metadata
from longtake.errors import (
    EngineError,
    LongtakeError,
    RankError,
    RefusedInputError,
    RequestError,
    Stopped,
    one_line,
)
from longtake.files.atomic import writing
from longtake.pipelines.progress import Progress
from longtake.serve.queue.job_database import QueueLostError
from longtake.serve.queue.job_records import JobRecord, State
from longtake.serve.queue.job_store import ClaimLostError, JobStore
from longtake.serve.runner.claim import Claim
from longtake.serve.runner.filmstrip import Filmstrip
from longtake.serve.runner.outputs import (
    TAKEN,
    OutputTakenError,
    drop_earlier_metadata,
    is_inside,
    key_of,
    rendered_as,
    snapshot_of,
    steps_kept,
    strip_of,
    sweep_partials,
    taken_by_others,
    told_of,
)

_LONGEST_WAIT_S = 60.0
_LOOK_AGAIN_S = 0.3
_QUEUE_S = 60.0
"""For so long a queue that cannot be written is tried again, then said to be so."""
_STOPPED = "it was told to stop"
NOT_OF_ONE = ("loading", "snapshots")
"""Seconds that are no job's own, or part of another stage's."""
_OF_THE_JOB = ("id", "fingerprint", "engine", "model", "claims", "queued_at", "started_at")
"""What is told of a job beside its videos, by which they are known if the queue is lost."""

AnswerT = TypeVar("AnswerT")


class Watcher:
    """Is told how jobs get on; by several threads. Of what it does not define it hears nothing."""

    def progress(self, job: str, progress: Progress) -> None:
        """A job got on."""

    def state(self, job: str, state: State, text: str) -> None:
        """A job is in another state."""

    def note(self, text: str) -> None:
        """Something that is worth a line."""

    def frames(self, job: str, picture: bytes) -> None:
        """More frames of a job are decoded: small ones so far, side by side, as a JPEG."""

    def rendered(self, job: JobRecord, metadata: Metadata) -> None:
        """A job's videos have their names; what they cost."""


class Replica:
    """Renders jobs until none is left, or it is told to stop.

    Args:
        store: the queue, of a folder.
        supervisor: of the ranks that render.
        engine_digest: of what they are; jobs of others are left alone.
        settings: of the batch.
        how_often: snapshots are written.
        watcher: is told.
        stop: is set when the batch is to end.
        scratch: folder for files that are not whole.
        frames_shown: of each video, in small, at most.
    """

    def __init__(
        self,
        store: JobStore,
        supervisor: Supervisor,
        engine_digest: str,
        settings: BatchConfig,
        how_often: SnapshotConfig,
        watcher: Watcher,
        stop: threading.Event,
        scratch: Path,
        frames_shown: int = 3,
    ) -> None:
        self._store = store
        self._frames_shown = frames_shown
        self._scratch = scratch
        self._supervisor = supervisor
        self._engine_digest = engine_digest
        self._settings = settings
        self._how_often = how_often
        self._watcher = watcher
        self._stop = stop
        self._low_memory_from_pixels: int | None = None
        self.failure: Exception | None = None

    def run(self) -> None:
        """Work; what keeps it from going on is left in ``failure``."""
        try:
            try:
                self._work()
            finally:
                self._supervisor.close()
        except Exception as error:
            self.failure = error

    def _work(self) -> None:
        while not self._stop.is_set():
            job = self._record(self._store.claim, self._engine_digest, time.time())
            if job is not None:
                self._work_on(job)
            elif self._settings.watch or self._store.unfinished(self._engine_digest):
                self._stop.wait(_LOOK_AGAIN_S)  # another may die, and a fault's wait may end
            else:
                return

    def _work_on(self, job: JobRecord) -> None:
        """Bring one job to another state; however that ends, the claim on it does, too."""
        try:
            self._watcher.state(job.id, "running", "")
            with Claim(self._store, job, time.time, self._stop) as claim:
                self._attempt(claim)
        except ClaimLostError as error:
            self._watcher.note(str(error))
        finally:
            self._store.release(job, time.time())

    def _record(self, write: Callable[..., AnswerT], *arguments: object) -> AnswerT:
        """Write into the queue. Where that cannot be, a full disk may have room before long.

        Raises:
            _WorkerEndsError: nobody watches, and the queue is lost, or could not be written for a
                minute; or all is to end.
        """
        said_at = begun = time.monotonic()
        while True:
            try:
                return write(*arguments)
            except EngineError as error:
                late = isinstance(error, QueueLostError) or time.monotonic() - begun > _QUEUE_S
                if (late and not self._settings.watch) or self._stop.is_set():
                    raise _WorkerEndsError(str(error)) from error
                if said_at == begun or time.monotonic() - said_at > _QUEUE_S:
                    said_at = time.monotonic()
                    self._watcher.note(str(error))
            self._stop.wait(_LOOK_AGAIN_S)

    def _attempt(self, claim: Claim) -> None:
        job = claim.job
        try:
            sweep_partials(self._store.folder, job)
            if rendered_as(self._store.folder, job):
                self._done(job, {}, "it was there already")
                return
            self._start(claim)
            self._render(claim)
        except (ClaimLostError, _WorkerEndsError):
            raise
        except Stopped:
            self._stopped(claim)
        except RefusedInputError as error:
            if job.request.image is None or isinstance(error, OutputTakenError):
                self._failed(job, str(error))
            else:  # its picture may be back before long
                self._fault(job, error)
        except Exception as error:
            if claim.stop_requested():  # then it is no fault of the job
                self._stopped(claim)
            else:
                self._fault(job, error)

    def _start(self, claim: Claim) -> None:
        """Have ranks; without any, the job waits and this replica ends."""
        try:
            self._supervisor.start(
                lambda progress: self._progress(claim, progress), claim.stop_requested
            )
        except (EngineError, RefusedInputError) as error:
            self._record(self._store.put_back, claim.job, one_line(error), time.time())
            raise _WorkerEndsError(str(error)) from error

    def _render(self, claim: Claim) -> None:
        job, folder = claim.job, self._store.folder
        path, request = folder / job.output, job.request
        if not is_inside(folder, path.parent):  # a link was put there since it was checked
            raise RequestError(f"output={job.output!r} leaves {folder}: remove the link")
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        self._check_own(job)
        engine, kept = self._supervisor.engine, snapshot_of(folder, job)
        identity = engine.identity_of(request)
        plan, note = plan_snapshots(kept, identity, self._how_often, resume=True)
        if note:
            with suppress(EngineError):  # it is told below, too
                self._store.note(job, "snapshot", note, time.time())
            self._watcher.note(f"{job.id}: {note}")
        num_frames = engine.num_frames_of(request)
        files = VideoFiles(
            path,
            request,
            engine.config,
            num_frames=num_frames,
            keep_latents=False,
            token=f"{key_of(job.id)}-{job.claims}",
            overwrite=bool(told_of(path)),
        )
        strip = Filmstrip(
            files,
            num_frames,
            lambda picture: self._watcher.frames(job.id, picture),
            self._frames_shown,
        )
        with files:
            metadata = self._supervisor.render(
                request,
                strip,
                lambda progress: self._progress(claim, progress),
                snapshots=plan,
                low_memory=job.low_memory or self._is_as_large(job),
                stop_requested=claim.stop_requested,
            )
            self._watcher.progress(job.id, Progress("writing"))
            metadata.seconds["writing"] = files.seconds
            for warning in metadata.warnings():
                self._watcher.note(f"{job.id}: {warning}")
            self._record(claim.check)  # else the files are another process's to write
            told = {name: getattr(job, name) for name in _OF_THE_JOB}
            files.publish({**metadata.as_json(), "batch": told})
        drop_earlier_metadata(path, job.id)
        if files.paths != output_paths(path, request.num_videos):
            there = " ".join(map(str, files.paths))
            raise OutputTakenError(f"{path} was put there meanwhile: this video is {there}")
        with suppress(EngineError, OSError):  # the video is there, if its thumbnails are not
            picture = strip_of(folder, job)
            strip.save(picture, self._scratch / picture.name)
        stages = {n: round(s, 3) for n, s in metadata.seconds.items() if n not in NOT_OF_ONE}
        self._done(job, stages)
        self._watcher.rendered(job, metadata)

    def _check_own(self, job: JobRecord) -> None:
        """Refuse a job whose output stands there and is none of the batch's."""

        def job_of(name: str) -> JobRecord | None:
            with suppress(RequestError):
                return self._store.job(name)
            return None

        path = self._store.folder / job.output
        other = taken_by_others(path, job.request.num_videos, job.id, job.source, job_of)
        if other is not None:
            raise OutputTakenError(f"{other} {TAKEN}")

    def _progress(self, claim: Claim, progress: Progress) -> None:
        self._watcher.progress(claim.job.id, progress)
        claim.progress(progress)

    def _done(self, job: JobRecord, seconds: dict[str, float], why: str = "") -> None:
        self._record(self._store.finish, job, seconds, time.time(), why)
        self._drop_snapshot(job)
        self._watcher.state(job.id, "done", why)

    def _stopped(self, claim: Claim) -> None:
        """It was cancelled, or taken over, or the batch is to end."""
        job = claim.job
        if claim.cancelled:
            self._record(self._store.end_as_asked, job, time.time())
            self._drop_snapshot(job)
            self._watcher.state(job.id, "cancelled", "as was asked")
        else:
            self._record(self._store.put_back, job, _STOPPED, time.time())
            self._watcher.state(job.id, "queued", _STOPPED)

    def _drop_snapshot(self, job: JobRecord) -> None:
        with suppress(OSError):  # one that is left goes when this folder is next opened
            drop_snapshot(snapshot_of(self._store.folder, job))

    def _failed(self, job: JobRecord, error: str) -> None:
        self._record(self._store.fail, job, error, time.time())
        self._watcher.state(job.id, "failed", error)

    def _fault(self, job: JobRecord, error: Exception) -> None:
        """It waits for another attempt, or is set aside after so many with no step gained."""
        text = str(error) if isinstance(error, LongtakeError) else one_line(error)
        step = steps_kept(self._store.folder, job)
        faults = 1 if step > job.fault_step else job.faults + 1
        if faults >= self._settings.attempts:
            self._failed(job, f"{text}\n(after {faults} faults in a row)")
            return
        low_memory = job.low_memory or _ran_out_of_memory_decoding(error)
        if low_memory and not job.low_memory:
            self._low_memory_from_pixels = _pixels(job)
        wait_s = min(2.0 ** (faults - 1), _LONGEST_WAIT_S)
        now = time.time()
        self._record(self._store.try_again, job, text, step, low_memory, wait_s, now)
        self._watcher.state(job.id, "queued", text.partition("\n")[0])

    def _is_as_large(self, job: JobRecord) -> bool:
        """Whether one that was no larger ran out of memory while it was decoded."""
        least = self._low_memory_from_pixels
        return least is not None and _pixels(job) >= least


class _WorkerEndsError(EngineError):
    """No ranks can be had, or the queue cannot be written, whatever is to be rendered."""


def _pixels(job: JobRecord) -> int:
    request = job.request
    return request.num_videos * request.num_frames * request.height * request.width


def _ran_out_of_memory_decoding(error: Exception) -> bool:
    return (
        isinstance(error, RankError)
        and error.out_of_memory
        and error.phase in ("decoding", "waiting")
    )
