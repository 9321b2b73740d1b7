"""Ranks that torchrun started: this process is one of them."""

from __future__ import annotations

import contextlib
import gc
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace

import torch
import torch.distributed as dist

from longtake.configs.engine import EngineConfig
from longtake.engine.job import NO_INPUTS, Job, JobRun, refusal_of
from longtake.engine.launch.launcher import Launcher
from longtake.engine.launch.process_group import Rendezvous, control_group, join_group
from longtake.engine.launch.protocol.deadlines import Deadlines
from longtake.engine.loras.choice import NO_LORAS, LoraChoice
from longtake.engine.media.arrays import Array
from longtake.engine.media.sinks import Sink
from longtake.engine.rank_report import RankReport
from longtake.engine.torchrun import TorchrunEnvironment
from longtake.engine.worker import REFUSED_ON_ALL_RANKS, Worker
from longtake.errors import LongtakeError, PeerLostError, RankError, RefusedInputError, Stopped
from longtake.parallel import World
from longtake.parallel.exchange import all_reduce_max
from longtake.pipelines.runtime.progress import OnProgress, Progress, StopRequested, never


class JoinedGroup(Launcher):
    """The ranks that torchrun started. Each of them makes the same calls.

    When one rank fails, the caller lets its process end; torchrun then ends the other ranks, unless
    they notice the lost peer first.

    Args:
        config: The engine's configuration.
        device_type: "cpu" or "cuda".
        torchrun: Torchrun's environment.
    """

    def __init__(
        self, config: EngineConfig, device_type: str, torchrun: TorchrunEnvironment
    ) -> None:
        self._config = config
        self._device_type = device_type
        self._torchrun = torchrun
        self._deadlines = Deadlines(config)
        self._worker: Worker | None = None
        self._created_group = False
        self._failed = False

    def start(
        self,
        on_progress: OnProgress,
        stop_requested: StopRequested = never,
        loras: LoraChoice = NO_LORAS,
    ) -> None:
        """Join the group and load this rank's share of the model."""
        torchrun = self._torchrun
        on_gpu = self._device_type == "cuda"
        device = torch.device("cuda", torchrun.local_rank) if on_gpu else torch.device("cpu")
        with self._watched(on_progress) as watched_progress:
            if not dist.is_initialized():
                rendezvous = Rendezvous(torchrun.rank, torchrun.world_size, torchrun.master_address)
                join_group(rendezvous, device, self._config.load_timeout_s)
                self._created_group = True
            self._world = World(
                device,
                dist.group.WORLD,
                self._host_group(),
                control_group(),
                timeout_s=self._config.step_timeout_s,
            )
            self._worker = Worker(self._config, self._world, watched_progress, loras)

    def agree(self, job: Job | None, refusal: RefusedInputError | None = None) -> Job:
        """Rank 0's job or its refusal, on all ranks: each rank may have drawn another seed."""
        own_job = None if job is None else job.model_dump(mode="json")
        own_refusal = None if refusal is None else [type(refusal).__name__, str(refusal)]
        with self._watched(lambda progress: None):
            first_job, first_refusal = self._world.gather_json([own_job, own_refusal])[0]
        if first_refusal is not None:
            raise refusal_of(*first_refusal)
        return Job.model_validate(first_job)

    def render(self, run: JobRun) -> list[RankReport]:
        """Render one job; returns on all ranks together. Only rank 0's sink receives output.

        SIGINT or SIGTERM on any rank stops all ranks between steps or tiles.
        """
        assert self._worker is not None
        with self._watched(run.on_progress) as watched_progress, _collected_signals() as signals:
            watched = replace(
                run,
                sink=_CallersSink(run.sink, self._callers_errors),
                on_progress=watched_progress,
                inputs=run.inputs if self._torchrun.rank == 0 else NO_INPUTS,
                stop_requested=lambda: bool(signals) or run.stop_requested(),
            )
            try:
                return self._worker.render(watched)
            except Stopped as error:
                error.terminated = signal.SIGINT not in signals
                raise

    @property
    def alive(self) -> bool:
        """Whether the ranks can take another job."""
        return not self._failed

    def close(self) -> None:
        """Leave the group, on all ranks together; a rank that has failed leaves by itself."""
        self._worker = None
        if self._created_group and not self._failed and dist.is_initialized():
            assert self._world.control is not None
            with contextlib.suppress(LongtakeError):
                all_reduce_max(0, self._world.control)  # else gloo ranks abort at exit now and then
            dist.destroy_process_group()
            # The last references: gloo joins its threads here. At interpreter exit they would abort
            # the process now and then.
            del self._world
            gc.collect()
        self._created_group = False

    def _host_group(self) -> dist.ProcessGroup | None:
        """The group of this host's ranks, which torchrun numbers consecutively."""
        torchrun, own = self._torchrun, None
        for first in range(0, torchrun.world_size, torchrun.local_world_size):
            ranks = list(range(first, min(first + torchrun.local_world_size, torchrun.world_size)))
            group = dist.new_group(ranks, group_desc="longtake:host")
            if torchrun.rank in ranks:
                own = group
        return own

    @contextmanager
    def _watched(self, on_progress: OnProgress) -> Iterator[OnProgress]:
        """Yields a progress callback that also moves this process's deadline.

        Only rank 0 calls ``on_progress``. Errors other than refusals and stops mark this rank as
        failed.
        """

        def watched_progress(progress: Progress) -> None:
            self._deadlines.progress(progress)
            if self._torchrun.rank == 0:
                with self._callers_errors():
                    on_progress(progress)

        try:
            with _lost_peers_as_rank_errors():
                yield watched_progress
        except (*REFUSED_ON_ALL_RANKS, Stopped):
            raise
        except BaseException:
            self._failed = True
            raise
        finally:
            self._deadlines.pause()

    @contextmanager
    def _callers_errors(self) -> Iterator[None]:
        """Exceptions of the caller's code, of any type, are raised on this rank only."""
        try:
            yield
        except BaseException:
            self._failed = True
            raise


class _CallersSink:
    """A sink whose errors are distinguished from those of the ranks.

    Args:
        sink: The caller's sink.
        errors: Context in which the sink is called.
    """

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
def _lost_peers_as_rank_errors() -> Iterator[None]:
    try:
        yield
    except PeerLostError as error:
        raise RankError(str(error)) from error


@contextmanager
def _collected_signals() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM in the main thread; torchrun sends both, and twice."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    previous = {
        number: signal.signal(number, lambda number, frame: received.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
