"""What starts ranks: nobody (this process is the one rank), torchrun, or a launcher of processes
(:mod:`longtake.engine.local_processes`). What a rank executes is :mod:`longtake.engine.worker`.
"""

from __future__ import annotations

import contextlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from longtake.configs.engine import EngineConfig
from longtake.engine.deadlines import Deadlines
from longtake.engine.worker import Job, RankReport, Sink, Worker, join_group
from longtake.parallel import World
from longtake.pipelines.rendering import OnProgress, Progress


class Launcher(ABC):
    """Ranks with a loaded model. Created without any; :meth:`start` starts them."""

    @abstractmethod
    def start(self, on_progress: OnProgress) -> None:
        """Start the ranks and load the model.

        Raises:
            ModelError: it cannot be loaded.
            EngineError: a rank died or hung.
        """

    @abstractmethod
    def render(self, job: Job, sink: Sink, on_progress: OnProgress) -> list[RankReport]:
        """Render one job; what the sink or ``on_progress`` raises stops all ranks.

        Raises:
            RefusedInputError, Stopped: the ranks can go on with another job.
            EngineError: a rank died or hung; all have been ended.
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
        self._world = World(torch.device(device_type))
        self._worker: Worker | None = None

    def start(self, on_progress: OnProgress) -> None:
        """Load the model in this process."""
        self._worker = Worker(self._config, self._world, on_progress)

    def render(self, job: Job, sink: Sink, on_progress: OnProgress) -> list[RankReport]:
        """Render in this process."""
        assert self._worker is not None
        return self._worker.render(job, sink, on_progress, lambda: False)

    def close(self) -> None:
        """Let go of the model."""
        self._worker = None


class JoinedGroup(Launcher):
    """The ranks that torchrun started; each of them is in the same call with the same request."""

    def __init__(self, config: EngineConfig, device_type: str) -> None:
        self._config = config
        self._device_type = device_type
        self._rank = int(os.environ["RANK"])
        self._world_size = int(os.environ["WORLD_SIZE"])
        self._deadlines = Deadlines(config)
        self._worker: Worker | None = None
        self._made_group = False

    def start(self, on_progress: OnProgress) -> None:
        """Join the group and load this rank's share of the model."""
        local_rank = int(os.environ.get("LOCAL_RANK", self._rank))
        on_gpu = self._device_type == "cuda"
        device = torch.device("cuda", local_rank) if on_gpu else torch.device("cpu")
        timeout_s = self._config.load_timeout_s
        if dist.is_initialized():
            group = dist.group.WORLD
        else:
            group = join_group(None, device, self._rank, self._world_size, timeout_s)
            self._made_group = True
        world = World(device, group, self._host_group(), timeout_s=self._config.step_timeout_s)
        with self._watched(on_progress) as watched:
            self._worker = Worker(self._config, world, watched)
            self._world = world

    def render(self, job: Job, sink: Sink, on_progress: OnProgress) -> list[RankReport]:
        """Render rank 0's job on all ranks; only rank 0's sink is filled."""
        assert self._worker is not None
        agreed = Job.model_validate(self._world.gather_json(job.model_dump(mode="json"))[0])
        with self._watched(on_progress) as watched:
            return self._worker.render(agreed, sink, watched, lambda: False)

    def close(self) -> None:
        """Leave the group."""
        self._worker = None
        if self._made_group and dist.is_initialized():
            with contextlib.suppress(RuntimeError):
                dist.barrier()  # without it gloo's ranks abort at exit now and then
            dist.destroy_process_group()
            self._made_group = False

    def _host_group(self) -> dist.ProcessGroup | None:
        """The ranks of this host, which torchrun numbers one after the other."""
        local_size = int(os.environ.get("LOCAL_WORLD_SIZE", self._world_size))
        own = None
        for first in range(0, self._world_size, local_size):
            ranks = list(range(first, min(first + local_size, self._world_size)))
            group = dist.new_group(ranks, group_desc="longtake:host")
            if self._rank in ranks:
                own = group
        return own

    @contextmanager
    def _watched(self, on_progress: OnProgress) -> Iterator[OnProgress]:
        """Progress that also moves this process's deadline; only rank 0 tells the caller."""

        def watched(progress: Progress) -> None:
            self._deadlines.progress(progress)
            if self._rank == 0:
                on_progress(progress)

        try:
            yield watched
        finally:
            self._deadlines.pause()
