"""The videos of one server: a queue in a folder, and an engine that works on it."""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from longtake.configs.batch import BatchConfig
from longtake.configs.engine import EngineConfig
from longtake.configs.request import ResolvedRequest, VideoRequest
from longtake.configs.serve import ServeConfig
from longtake.configs.snapshot import SnapshotConfig
from longtake.engine.engine import VideoEngine
from longtake.engine.media.output_files import metadata_path, output_paths
from longtake.engine.media.snapshot import drop_snapshot
from longtake.engine.request import resolve
from longtake.engine.supervisor import Supervisor
from longtake.engine.video import Metadata
from longtake.errors import RefusedInputError, RequestError, Stopped
from longtake.serve.http.openai_request import Asked, FieldError, asked_of
from longtake.serve.queue.job_database import QueueError
from longtake.serve.queue.job_records import JobRecord, NewJob
from longtake.serve.queue.queue_watch import QueueWatch
from longtake.serve.queue.submissions import DOOR, OtherRequestError, Submissions
from longtake.serve.runner.job_renderer import ReplicaSettings
from longtake.serve.runner.outputs import (
    earlier_metadata_path,
    snapshot_of,
    strip_of,
    sweep,
    sweep_partials,
)
from longtake.serve.runner.replica import Replica
from longtake.serve.runner.scratch import alone_in, prepare_folder, scratch_folder
from longtake.serve.service.eta import EtaEstimator
from longtake.serve.service.metrics import Metrics
from longtake.serve.service.pictures import Pictures
from longtake.serve.service.progress_hub import ProgressHub
from longtake.serve.service.recovered import finished_jobs

logger = logging.getLogger(__name__)

VIDEOS, PICTURES = "videos", "pictures"
_TIDY_EVERY_S = 2.0
_FRAMES_SHOWN = 6
_LONGEST_WAIT_S = 30.0
_BUSY_S = 3.0
_POSITIONS_KEPT = 10_000
"""Of deleted jobs, for clients who delete while they go through pages."""


class VideoService:
    """Takes requests, renders them one after the other, and keeps what comes of it.

    Building one checks the model and takes the folder; :meth:`start` loads the model. Threads may
    share it.

    Args:
        config: the model and its ranks.
        settings: of the server.
        how_often: snapshots are written.
        on_failure: called if it turns out that the model cannot be loaded at all.

    Attributes:
        model: the name that clients know the model by.
        failure: why it cannot be loaded.
        scratch: folder for files that are not whole, of this process alone.
        queue: whether the queue's file can be used.

    Raises:
        RefusedInputError: the model or the folder cannot be used.
        EngineError: the folder cannot be written.
    """

    def __init__(
        self,
        config: EngineConfig,
        settings: ServeConfig,
        how_often: SnapshotConfig,
        on_failure: Callable[[], None] = lambda: None,
    ) -> None:
        self.settings = settings
        self.folder = folder = settings.data_dir.expanduser().absolute()
        if folder.exists() and not folder.is_dir():
            raise RequestError(f"data_dir={str(folder)!r} is a file: name a folder")
        pictures = folder / PICTURES
        self.engine = VideoEngine(
            config.model_copy(update={"image_folder": pictures}), isolated=True
        )
        self.model = config.model.rstrip("/").rpartition("/")[2] or config.model
        self._weights = f"{self.model}@{self.engine.identity_part().split()[0][:16]}"
        self.failure: Exception | None = None
        self._how_often = how_often
        self._on_failure = on_failure
        self._digest = hashlib.sha256(self.engine.identity_part().encode()).hexdigest()
        self._stop = threading.Event()
        with ExitStack() as opened:
            prepare_folder("data_dir", folder, VIDEOS, PICTURES)
            opened.callback(alone_in(folder).close)
            self.store = opened.enter_context(
                Submissions(folder, create=True, busy_s=_BUSY_S, patience=self._stop)
            )
            self.scratch = opened.enter_context(scratch_folder(folder))
            self._opened = opened.pop_all()
        self.metrics = Metrics(self)
        self.live = ProgressHub(self._rendered, self.metrics.ended)
        self.pace = EtaEstimator(self.engine, self.store, self.live, self._digest)
        self.queue = QueueWatch(self.store, self.live.note)
        self.pictures = Pictures(pictures)
        self._positions: OrderedDict[str, int] = OrderedDict()
        self.supervisor: Supervisor | None = None
        self._starts = 0
        self._threads = [
            threading.Thread(target=each, daemon=True) for each in (self._work, self._keep_tidy)
        ]

    # What clients ask.

    def create(
        self,
        values: Mapping[str, Any],
        upload: bytes | None = None,
        *,
        asker: str = "",
        once: str | None = None,
    ) -> JobRecord:
        """Queue a video.

        Args:
            values: fields by name; see :func:`longtake.serve.http.openai_request.asked_of`.
            upload: the picture's file.
            asker: label of the API key.
            once: a key of the client's: the same again is the same job.

        Raises:
            FieldError: it cannot be rendered here; nothing was queued.
            QueueFullError: too many wait.
        """
        asked = asked_of(values, upload, self.model, self.engine.spec)
        if asked.picture is None and self.engine.spec.image is not None:
            raise FieldError(
                f"{self.model} animates a picture: send input_reference, a PNG, JPEG or WebP file",
                "input_reference",
            )
        picture = hashlib.sha256(asked.picture or b"").hexdigest()
        left_out = asked.request.left_at_default
        fingerprint = _digest(asked.request.model_dump_json(exclude=left_out), picture)
        name = secrets.token_hex(16) if once is None else _digest(asker, once)[:32]
        name = f"video_{name}"
        try:
            if (known := self.store.found(name)) is not None:
                if known.fingerprint == fingerprint:
                    return known
                raise OtherRequestError(f"{name} is that of another request: choose another")
            return self._queued(name, asked, fingerprint, asker)
        except OtherRequestError as error:
            raise FieldError(
                "this Idempotency-Key came with another request: choose another",
                "Idempotency-Key",
            ) from error

    def _queued(self, name: str, asked: Asked, fingerprint: str, asker: str) -> JobRecord:
        request, path = asked.request, None
        if "embed_metadata" not in request.model_fields_set:
            request = request.model_copy(update={"embed_metadata": self.settings.embed_metadata})
        if asked.picture is not None:
            path = self.pictures.write(name, asked.picture)
            request = request.model_copy(update={"image": path})
        kept = None
        try:
            resolved = self.resolved(request)
            suffix = ".safetensors" if resolved.output_type == "latents" else ".mp4"
            job = NewJob(
                id=name,
                source=f"{DOOR} {asker}".strip(),
                position=0,
                output=f"{VIDEOS}/{name}{suffix}",
                engine=self._digest,
                request=resolved,
                fingerprint=fingerprint,
                model=self._weights,
            )
            settings = self.settings
            several = len(settings.api_key) > 1
            of_key = settings.most_waiting_per_key if several else settings.most_waiting
            queued, _ = self.store.add(
                job, time.time(), most_waiting=settings.most_waiting, most_of_source=of_key
            )
            kept = queued.request.image
            return queued
        finally:
            if path is not None and kept != path:  # refused, or it was there already
                path.unlink(missing_ok=True)

    def resolved(self, request: VideoRequest) -> ResolvedRequest:
        """A request with nothing left out, if it can be rendered here in the time that is allowed.

        Raises:
            RefusedInputError: it cannot.
        """
        return self._allowed(self.engine.resolve(request))

    def resolved_without_picture(self, request: VideoRequest) -> ResolvedRequest:
        """The same of a request whose picture is still to be chosen."""
        return self._allowed(resolve(request, self.engine.spec))

    def _allowed(self, resolved: ResolvedRequest) -> ResolvedRequest:
        if reason := self.engine.layouts.misfit(resolved):
            raise RequestError(f"this video {reason}: ask for fewer frames, or smaller ones")
        seconds = self.pace.seconds_of(resolved)
        if seconds > self.settings.longest_s:
            raise RequestError(
                f"this video would take {seconds:.0f} s by the plan, and "
                f"{self.settings.longest_s:g} are the most (--longest-s): ask for fewer frames, "
                "smaller ones, or fewer steps"
            )
        return resolved

    def picture_of(self, name: str) -> bytes:
        """A picture that was sent beforehand, or that an earlier video began with.

        Raises:
            RequestError: it is no longer there.
        """
        job = self.store.found(name)
        return self.pictures.read(name if job is None else job.request.image)

    def delete(self, job: JobRecord) -> None:
        """Cancel a job, and forget it."""
        self.store.delete(job.id, time.time())
        self._positions[job.id] = job.position
        while len(self._positions) > _POSITIONS_KEPT:
            self._positions.popitem(last=False)
        self.live.wake(job.id)

    def position_of(self, name: str) -> int | None:
        """Where a job stands among all, or stood if it was deleted not long ago."""
        job = self.store.found(name)
        return self._positions.get(name) if job is None else job.position

    def cancel(self, job: JobRecord) -> None:
        """Cancel a job, and keep what is known of it."""
        self.store.cancel([job.id], time.time())
        self.live.wake(job.id)

    def outputs(self, job: JobRecord) -> list[Path]:
        """The videos of a job."""
        return output_paths(self.folder / job.output, job.request.num_videos)

    def strip(self, job: JobRecord) -> Path:
        """Some frames of a job, in small, as a JPEG."""
        return strip_of(self.folder, job)

    @property
    def loaded(self) -> bool:
        """Whether the model is loaded on ranks that run."""
        return self.supervisor is not None and self.supervisor.engine.running

    @property
    def unready(self) -> str:
        """Why no video can be rendered; empty if one can."""
        if self.queue.problem is not None:
            return f"{self.queue.problem.summary}: the server's log says more"
        return "" if self.loaded else "the model is being loaded"

    @property
    def restarts(self) -> int:
        """Starts of the ranks but for the first."""
        now = 0 if self.supervisor is None else self.supervisor.starts
        return max(0, self._starts + now - 1)

    # What it does by itself.

    def start(self) -> None:
        """Load the model and begin to work, in threads of its own."""
        if failed := self.store.adopt(self._digest, self._weights, time.time()):
            self.live.note(f"{failed} videos waited for another model, and failed")
        known = {job.id for job in self.store.jobs()}
        found = finished_jobs(self.folder / VIDEOS, self.folder / PICTURES, known)
        if found:
            self.store.restore(found)
            videos = "1 finished video" if len(found) == 1 else f"{len(found)} finished videos"
            self.live.note(f"{videos} found that the queue did not know: in it again")
        sweep(self.store)
        self.pictures.sweep(job.request.image for job in self.store.jobs())
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Have the ranks stop, and those who follow videos go away. What was begun goes on the next
        time. Not for signal handlers: it takes locks."""
        self._stop.set()
        self.live.stop()

    def close(self) -> None:
        """Stop, and let go of the folder once the ranks have ended: they have ``stop_timeout_s``
        to reach the end of a step."""
        self.stop()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()
        self._opened.close()

    def _work(self) -> None:
        wait_s, was_ready = 1.0, False
        while not self._stop.is_set():
            self._starts += 0 if self.supervisor is None else self.supervisor.starts
            self.supervisor = None
            try:
                supervisor = Supervisor(
                    self.engine.config, self.scratch, self.live.note, self._stop.wait
                )
                self.supervisor = supervisor
                supervisor.start(lambda progress: None, self._stop.is_set)
                was_ready, wait_s = True, 1.0
                failure = self._render_all(supervisor)
            except Stopped:
                return
            except RefusedInputError as error:
                failure = error
                if not was_ready:
                    self.failure = error
                    self._on_failure()
                    return
            except Exception as error:
                failure = error
                if not self._stop.is_set():
                    logger.exception("the ranks could not be started")
            if failure is not None and not self._stop.is_set():
                self.live.note(f"{failure}; it is tried again in {wait_s:.0f} s")
                self._stop.wait(wait_s)
                wait_s = min(2 * wait_s, _LONGEST_WAIT_S)

    def _render_all(self, supervisor: Supervisor) -> Exception | None:
        settings = ReplicaSettings(
            self._digest,
            BatchConfig(watch=True, attempts=self.settings.attempts),
            self._how_often,
            self.scratch,
            _FRAMES_SHOWN,
        )
        replica = Replica(self.store, supervisor, settings, self.live, self._stop)
        replica.run()
        return replica.failure

    def _rendered(self, job: JobRecord, metadata: Metadata) -> None:
        if not metadata.ranks[0].steps_before:
            self.pace.took(job.request, metadata.seconds)
        self.metrics.rendered(job, metadata)

    def _keep_tidy(self) -> None:
        """Look at the queue's file; remove what was deleted or is too old."""
        while not self._stop.wait(_TIDY_EVERY_S):
            try:
                self.queue.look()
                self.tidy(time.time() - self.settings.keep_s)
            except QueueError:  # the line about it was written
                continue
            except Exception:
                logger.exception("something could not be removed")

    def tidy(self, ended_before: float) -> None:
        """Remove the files of jobs that were deleted or ended before a time, then the jobs; and
        pictures for which no video was asked."""
        gone = []
        for job in self.store.gone(ended_before):
            try:
                self._remove_files(job)
                gone.append(job)
            except OSError as error:
                self.live.note(f"{job.id} could not be removed: {error}")
        if gone:
            self.store.forget(gone)
        self.pictures.drop_old()

    def _remove_files(self, job: JobRecord) -> None:
        sweep_partials(self.folder, job)
        output = self.folder / job.output
        beside = metadata_path(output), earlier_metadata_path(output)
        for path in (*self.outputs(job), *beside):
            path.unlink(missing_ok=True)
        self.strip(job).unlink(missing_ok=True)
        drop_snapshot(snapshot_of(self.folder, job))
        if job.request.image is not None:
            self.pictures.drop(job.request.image)


def _digest(*texts: str) -> str:
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()
