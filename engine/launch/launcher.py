"""What starts ranks: nobody (this process is the one rank), torchrun, or a launcher of processes
(:mod:`longtake.engine.launch.local_processes`). What a rank executes is
:mod:`longtake.engine.worker`.
"""

from __future__ import annotations

import contextlib
import gc
import signal
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
import torch.distributed as dist

from longtake import errors
from longtake.configs.engine import EngineConfig
from longtake.engine.job import Job, RankReport
from longtake.engine.launch.deadlines import Deadlines
from longtake.engine.launch.torchrun import TorchrunPlace
from longtake.engine.worker import (
    REFUSED_BY_ALL,
    Array,
    Beside,
    Sink,
    Worker,
    control_group,
    is_out_of_memory,
    join_group,
)
from longtake.errors import (
    EngineError,
    LongtakeError,
    PeerLostError,
    RankError,
    RefusedInputError,
    Stopped,
    one_line,
)
from longtake.parallel import World
from longtake.parallel.exchange import highest
from longtake.pipelines.progress import OnProgress, Progress, StopRequested, never


def refusal_of(kind: str, text: str) -> RefusedInputError:
    """Another process's refusal, of the kind that it was there."""
    refusal: RefusedInputError = getattr(errors, kind, RefusedInputError)(text)
    return refusal


class Launcher(ABC):
    """Ranks with a loaded model. Created without any; :meth:`start` starts them."""

    @abstractmethod
    def start(self, on_progress: OnProgress, stop_requested: StopRequested = never) -> None:
        """Start the ranks and load the model.

        Raises:
            ModelError: it cannot be loaded.
            RankError: a rank died or hung.
            Stopped: it was requested; all ranks have been ended.
        """

    def agree(self, job: Job | None, refusal: RefusedInputError | None = None) -> Job:
        """The job that all ranks will render, of those that each was asked for, if it was.

        Args:
            refusal: why there is none, which all ranks raise then.
        """
        if refusal is not None:
            raise refusal
        assert job is not None
        return job

    @abstractmethod
    def render(
        self,
        job: Job,
        sink: Sink,
        on_progress: OnProgress,
        beside: Beside = None,
        stop_requested: StopRequested = never,
    ) -> list[RankReport]:
        """Render one job; what the sink or ``on_progress`` raises stops all ranks.

        Args:
            sink: a TraceSink, of a job that is traced.
            beside: what comes with the job.
            stop_requested: asked again and again; ranks in processes of their own that do not
                stop within ``stop_timeout_s`` are killed.

        Raises:
            RefusedInputError, Stopped: the ranks can go on with another job, if :attr:`alive`.
            RankError: a rank died or hung; all have been ended.
        """

    @property
    def alive(self) -> bool:
        """Whether the ranks can take another job."""
        return True

    @abstractmethod
    def close(self) -> None:
        """End all ranks."""


class InProcess(Launcher):
    """One rank: this process."""

    def __init__(self, config: EngineConfig, device_type: str) -> None:
        self._config = config
        name = f"cuda:{config.devices_by_rank[0]}" if device_type == "cuda" else device_type
        self._world = World(torch.device(name))
        self._worker: Worker | None = None

    def start(self, on_progress: OnProgress, stop_requested: StopRequested = never) -> None:
        """Load the model in this process."""
        self._worker = Worker(self._config, self._world, on_progress)

    def render(
        self,
        job: Job,
        sink: Sink,
        on_progress: OnProgress,
        beside: Beside = None,
        stop_requested: StopRequested = never,
    ) -> list[RankReport]:
        """Render in this process."""
        assert self._worker is not None
        try:
            return self._worker.render(job, sink, on_progress, stop_requested, beside)
        except (RuntimeError, MemoryError) as error:
            if isinstance(error, LongtakeError) or not is_out_of_memory(error):
                raise
            asked = job.request
            raise EngineError(
                f"out of memory with {asked.num_videos} x {asked.num_frames} frames of "
                f"{asked.width}x{asked.height}: ask for fewer or smaller ones, or for more devices "
                f"({one_line(error)[:200]})"
            ) from error

    def close(self) -> None:
        """Let go of the model, and give a GPU's memory back."""
        self._worker = None
        if torch.cuda.is_initialized():
            gc.collect()
            torch.cuda.empty_cache()


class JoinedGroup(Launcher):
    """The ranks that torchrun started; each of them is in the same call.

    When one rank fails, the others notice or are ended by torchrun once that rank's process has
    ended: the caller lets it end.
    """

    def __init__(self, config: EngineConfig, device_type: str) -> None:
        self._config = config
        self._device_type = device_type
        self._place = TorchrunPlace.from_environment()
        self._deadlines = Deadlines(config)
        self._worker: Worker | None = None
        self._made_group = False
        self._failed = False

    def start(self, on_progress: OnProgress, stop_requested: StopRequested = never) -> None:
        """Join the group and load this rank's share of the model."""
        place = self._place
        on_gpu = self._device_type == "cuda"
        device = torch.device("cuda", place.local_rank) if on_gpu else torch.device("cpu")
        with self._watched(on_progress) as watched:
            if not dist.is_initialized():
                timeout_s = self._config.load_timeout_s
                join_group(None, device, place.rank, place.world_size, timeout_s)
                self._made_group = True
            self._world = World(
                device,
                dist.group.WORLD,
                self._host_group(),
                control_group(),
                timeout_s=self._config.step_timeout_s,
            )
            self._worker = Worker(self._config, self._world, watched)

    def agree(self, job: Job | None, refusal: RefusedInputError | None = None) -> Job:
        """Rank 0's job, on all ranks: each has drawn a seed of its own; or its refusal."""
        own = None if job is None else job.model_dump(mode="json")
        refused = None if refusal is None else [type(refusal).__name__, str(refusal)]
        with self._watched(lambda progress: None):
            agreed, kind_and_text = self._world.gather_json([own, refused])[0]
        if kind_and_text is not None:
            raise refusal_of(*kind_and_text)
        return Job.model_validate(agreed)

    def render(
        self,
        job: Job,
        sink: Sink,
        on_progress: OnProgress,
        beside: Beside = None,
        stop_requested: StopRequested = never,
    ) -> list[RankReport]:
        """Render one job on all ranks, which return together; only rank 0's sink is filled.

        SIGINT and SIGTERM stop all ranks between steps or tiles, whichever rank hears them.
        """
        assert self._worker is not None
        with self._watched(on_progress) as watched, _signals_counted() as signals:
            own = _CallersSink(sink, self._callers_errors)
            if self._place.rank != 0:
                beside = None
            try:
                return self._worker.render(
                    job, own, watched, lambda: bool(signals) or stop_requested(), beside
                )
            except Stopped as error:
                error.terminated = signal.SIGINT not in signals
                raise

    @property
    def alive(self) -> bool:
        """Whether the ranks can take another job."""
        return not self._failed

    def close(self) -> None:
        """Leave the group, all ranks together; a rank that has failed just lets go."""
        self._worker = None
        if self._made_group and not self._failed and dist.is_initialized():
            assert self._world.control is not None
            with contextlib.suppress(LongtakeError):
                highest(0, self._world.control)  # else gloo's ranks abort at exit now and then
            dist.destroy_process_group()
        self._made_group = False

    def _host_group(self) -> dist.ProcessGroup | None:
        """The ranks of this host, which torchrun numbers one after the other."""
        place, own = self._place, None
        for first in range(0, place.world_size, place.local_world_size):
            ranks = list(range(first, min(first + place.local_world_size, place.world_size)))
            group = dist.new_group(ranks, group_desc="longtake:host")
            if place.rank in ranks:
                own = group
        return own

    @contextmanager
    def _watched(self, on_progress: OnProgress) -> Iterator[OnProgress]:
        """Progress that also moves this process's deadline; only rank 0 tells the caller."""

        def watched(progress: Progress) -> None:
            self._deadlines.progress(progress)
            if self._place.rank == 0:
                with self._callers_errors():
                    on_progress(progress)

        try:
            with _lost_peers_are_errors():
                yield watched
        except (*REFUSED_BY_ALL, Stopped):
            raise
        except BaseException:
            self._failed = True
            raise
        finally:
            self._deadlines.pause()

    @contextmanager
    def _callers_errors(self) -> Iterator[None]:
        """What the caller raises is no other rank's, of whatever kind it is."""
        try:
            yield
        except BaseException:
            self._failed = True
            raise


class _CallersSink:
    """A sink whose errors are told from the ranks' own."""

    def __init__(self, sink: Sink, errors: Callable[[], AbstractContextManager[None]]) -> None:
        self._sink = sink
        self._errors = errors

    def latents(self, latents: Array) -> None:
        with self._errors():
            self._sink.latents(latents)

    def frame(self, video: int, index: int, frame: Array) -> None:
        with self._errors():
            self._sink.frame(video, index, frame)


@contextmanager
def _lost_peers_are_errors() -> Iterator[None]:
    try:
        yield
    except PeerLostError as error:
        raise RankError(str(error)) from error


@contextmanager
def _signals_counted() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM, where this is the main thread; torchrun sends both, and twice."""
    heard: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield heard
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {
        number: signal.signal(number, lambda number, frame: heard.append(number))
        for number in numbers
    }
    try:
        yield heard
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
