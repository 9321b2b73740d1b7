"""State of one server: its queue, its files, and the loops that render and clean up."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from longtake.configs.commands.serve import ServeConfig
from longtake.configs.engine import EngineConfig
from longtake.engine.loras.folder import LoraFolder
from longtake.engine.media.paths import output_paths
from longtake.engine.metadata import Metadata
from longtake.engine.resolve.outline import EngineOutline
from longtake.errors import RequestError
from longtake.serve.queue.job_database import QueueError
from longtake.serve.queue.job_records import JobRecord
from longtake.serve.queue.queue_watch import QueueWatch
from longtake.serve.queue.submissions import Submissions
from longtake.serve.runner.outputs import filmstrip_path, sweep
from longtake.serve.runner.scratch import lock_folder, prepare_folder, scratch_folder
from longtake.serve.service.admission import VIDEOS_FOLDER, Admission
from longtake.serve.service.eta import EtaEstimator
from longtake.serve.service.metrics import Metrics, ServerState
from longtake.serve.service.pictures import Pictures
from longtake.serve.service.progress_hub import ProgressHub
from longtake.serve.service.ranks_state import RanksState
from longtake.serve.service.recovery import find_finished_jobs
from longtake.serve.service.retention import Retention
from longtake.serve.service.served_model import ServedModel

logger = logging.getLogger(__name__)

PICTURES_FOLDER = "pictures"
_CLEAN_UP_EVERY_S = 2.0
_LOCK_TIMEOUT_S = 3.0
_POSITIONS_KEPT = 10_000
"""Maximum number of deleted jobs whose positions are kept for clients that page through videos."""


class VideoService:
    """The videos of one server, as the API and the page use them. Thread-safe.

    The constructor checks the model and locks the data folder. :meth:`start` starts the loops in
    ``background``, each in a thread; :meth:`close` ends them and unlocks the folder.

    Args:
        config: The model and its ranks.
        settings: The server's settings.

    Attributes:
        settings: The server's settings.
        engine: Resolves and checks requests; has no ranks.
        model: The served model.
        folder: The data folder.
        scratch: Folder of this process for partial files.
        store: The job queue.
        queue_watch: Monitor of the queue's file.
        admission: Admits videos to the queue.
        retention: Removes deleted and expired videos.
        pictures: Folder of the clients' pictures.
        loras: Folder of the LoRAs that requests may name; None without one.
        progress: Progress of the jobs.
        eta: Estimates of rendering times.
        metrics: Prometheus metrics.
        ranks: State of the ranks.
        stop_event: Set when the service stops.
        background: Loops that run from :meth:`start` until ``stop_event`` is set; more may be
            appended before :meth:`start`.

    Raises:
        RefusedInputError: The model or the folder cannot be used.
        EngineError: The folder cannot be written.
    """

    def __init__(self, config: EngineConfig, settings: ServeConfig) -> None:
        self.settings = settings
        self.folder = folder = settings.data_dir.expanduser().absolute()
        if folder.exists() and not folder.is_dir():
            raise RequestError(f"data_dir={str(folder)!r} is a file: name a folder")
        pictures = folder / PICTURES_FOLDER
        self.engine = EngineOutline(config.model_copy(update={"image_folder": pictures}))
        loras = self.engine.config.lora_folder
        self.loras = None if loras is None else LoraFolder(loras, self.engine.loras)
        self.unplaced_config = self.engine.config
        self.engine.place_weights()
        self.model = ServedModel.of(config.model, self.engine.identity_part())
        self.stop_event = threading.Event()
        with ExitStack() as opened:
            prepare_folder("data_dir", folder, VIDEOS_FOLDER, PICTURES_FOLDER)
            opened.callback(lock_folder(folder).close)
            self.store = opened.enter_context(
                Submissions(
                    folder, create=True, busy_s=_LOCK_TIMEOUT_S, retry_until=self.stop_event
                )
            )
            self.scratch = opened.enter_context(scratch_folder(folder))
            self._opened = opened.pop_all()
        self.ranks = RanksState()
        self.metrics = Metrics(self.engine.spec)
        self.progress = ProgressHub(self._on_rendered, self.metrics.count_ended)
        self.eta = EtaEstimator(
            self.engine.layouts.predicted, self.store, self.progress, self.model.digest
        )
        self.queue_watch = QueueWatch(self.store, self.progress.note)
        self.metrics.add_state(
            ServerState(self.store, self.queue_watch, self.ranks, lambda: self.unready)
        )
        self.pictures = Pictures(pictures)
        self.admission = Admission(
            self.engine, self.model, self.store, self.pictures, self.eta, settings
        )
        self.retention = Retention(folder, self.store, self.pictures, self.progress.note)
        self._deleted_positions: OrderedDict[str, int] = OrderedDict()
        self.background: list[Callable[[], None]] = [self._keep_clean]
        self._threads: list[threading.Thread] = []

    @property
    def unready(self) -> str:
        """Why no video can be rendered; empty if the server is ready."""
        if self.queue_watch.problem is not None:
            return f"{self.queue_watch.problem.summary}: the server's log says more"
        return "" if self.ranks.loaded else "the model is loading"

    def picture(self, name: str, field: str = "image") -> bytes:
        """Content of an uploaded picture, or of a picture of an earlier video.

        Args:
            name: Name of the upload, or id of the video.
            field: Request field of the earlier video's picture.

        Raises:
            RequestError: There is no such picture.
        """
        job = self.store.find(name)
        return self.pictures.read(name if job is None else job.request.picture_paths.get(field))

    def delete(self, job: JobRecord) -> None:
        """Cancel a job if it has not ended, and hide it. A background loop removes its files."""
        self.store.delete(job.id, time.time())
        self._deleted_positions[job.id] = job.position
        while len(self._deleted_positions) > _POSITIONS_KEPT:
            self._deleted_positions.popitem(last=False)
        self.progress.wake(job.id)

    def position(self, job_id: str) -> int | None:
        """Position of a job in the queue, also if it was deleted recently; None if unknown."""
        job = self.store.find(job_id)
        return self._deleted_positions.get(job_id) if job is None else job.position

    def cancel(self, job: JobRecord) -> None:
        """Cancel a job, and keep its record."""
        self.store.cancel([job.id], time.time())
        self.progress.wake(job.id)

    def outputs(self, job: JobRecord) -> list[Path]:
        """Paths of a job's videos."""
        return output_paths(self.folder / job.output, job.request.num_videos)

    def strip(self, job: JobRecord) -> Path:
        """Path of the JPEG with thumbnails of a job's frames."""
        return filmstrip_path(self.folder, job)

    def start(self) -> None:
        """Take over the jobs and files of an earlier server, and start the background loops.

        Unfinished jobs of another model fail. Finished videos without a job are added to the queue.
        """
        if failed := self.store.adopt(self.model.digest, self.model.weights, time.time()):
            self.progress.note(f"{failed} videos of another model failed")
        known = {job.id for job in self.store.jobs()}
        videos, pictures = self.folder / VIDEOS_FOLDER, self.folder / PICTURES_FOLDER
        found = find_finished_jobs(videos, pictures, known)
        if found:
            self.store.restore(found)
            count = "1 finished video" if len(found) == 1 else f"{len(found)} finished videos"
            self.progress.note(f"{count} missing in the queue, restored from metadata")
        sweep(self.store)
        self.pictures.sweep(
            path for job in self.store.jobs() for path in job.request.picture_paths.values()
        )
        self._threads = [threading.Thread(target=each, daemon=True) for each in self.background]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Have the ranks and the event streams stop, without waiting for them.

        Unfinished jobs resume at the next start. Not for signal handlers: it acquires locks.
        """
        self.stop_event.set()
        self.progress.stop()

    def close(self) -> None:
        """Stop, wait for the background loops, and unlock the folder. May be called repeatedly.

        The ranks have ``stop_timeout_s`` to reach the end of a step.
        """
        self.stop()
        for thread in self._threads:
            thread.join()
        self._threads = []
        self._opened.close()

    def _on_rendered(self, job: JobRecord, metadata: Metadata) -> None:
        if not metadata.ranks[0].steps_before:
            self.eta.add_sample(job.request, metadata.seconds)
        self.metrics.observe_rendered(job, metadata)

    def _keep_clean(self) -> None:
        """Check the queue's file and remove deleted and expired videos, periodically."""
        while not self.stop_event.wait(_CLEAN_UP_EVERY_S):
            try:
                self.queue_watch.look()
                self.retention.clean_up(time.time() - self.settings.keep_s)
            except QueueError:  # queue_watch has logged it
                continue
            except Exception:
                logger.exception("clean-up failed")
