"""Groups of ranks that call functions for tests and benchmarks.

A group runs a function, which must be importable, on each of its ranks and returns all results.
Tests share one group per world size. Ranks on CPUs are forked from a process that has imported
torch, so that they start at once.
"""

from __future__ import annotations

import multiprocessing as mp
import os
import signal
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import cache
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from longtake.parallel import ParallelDims
from tests.forked_ranks import fork_context

GROUP_TIMEOUT_S = 60.0
"""Timeout of collectives."""


class RankFailure(AssertionError):
    """A function failed on some ranks; the message has the traceback of each."""


class RankGroup:
    """``world_size`` processes with a process group over all of them."""

    def __init__(
        self,
        world_size: int,
        *,
        grace_s: float = 5.0,
        call_timeout_s: float = 240.0,
        device_type: str = "cpu",
        warnings_are: Literal["error", "ignore"] = "error",
    ) -> None:
        """Start the ranks.

        Args:
            grace_s: Seconds that the other ranks have to return once one has failed.
            call_timeout_s: Seconds that all ranks have to return.
            device_type: "cpu" (gloo) or "cuda" (NCCL, one device per rank).
            warnings_are: Treatment of warnings on the ranks.
        """
        self._call_timeout_s = call_timeout_s
        self._grace_s = grace_s
        context: Any = mp.get_context("spawn")  # CUDA cannot be used after a fork
        if device_type == "cpu":
            context = fork_context()
        self._folder = tempfile.TemporaryDirectory(prefix="longtake-ranks-")
        store = str(Path(self._folder.name) / "store")
        self._connections: list[Any] = []
        self.processes = []
        for rank in range(world_size):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_serve,
                args=(theirs, store, rank, world_size, device_type, warnings_are),
                daemon=True,
            )
            process.start()
            theirs.close()
            self._connections.append(ours)
            self.processes.append(process)

    def run(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """Call ``function(*args)`` on every rank; returns the results by rank.

        Raises:
            RankFailure: It raised on a rank, or a rank died or hung. The group cannot be used any
                more.
        """
        outcomes = self.outcomes(function, *args)
        failures = [f"rank {rank}: {text}" for rank, (ok, text) in enumerate(outcomes) if not ok]
        if failures:
            raise RankFailure("\n".join(failures))
        return [result for _, result in outcomes]

    def outcomes(self, function: Callable[..., Any], *args: Any) -> list[tuple[bool, Any]]:
        """Like :meth:`run`, but returns (True, result) or (False, error message) for each rank."""
        for connection in self._connections:
            connection.send((function, args))
        outcomes = {rank: (False, "no result") for rank in range(len(self.processes))}
        pending: dict[Any, int] = {c: rank for rank, c in enumerate(self._connections)}
        deadline = time.monotonic() + self._call_timeout_s
        while pending:
            ready: list[Any] = wait(pending, timeout=max(0, deadline - time.monotonic()))
            if not ready:
                break
            for connection in ready:
                rank = pending.pop(connection)
                try:
                    outcomes[rank] = connection.recv()
                except (EOFError, ConnectionError):
                    outcomes[rank] = (False, "the process died")
                if not outcomes[rank][0]:
                    deadline = min(deadline, time.monotonic() + self._grace_s)
        return list(outcomes.values())

    def suspend(self) -> None:
        """Suspend the processes: gloo's polling threads take up cores."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Continue suspended processes."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        for process in self.processes:
            if process.is_alive():
                os.kill(process.pid, number)

    def close(self) -> None:
        """End all processes."""
        self.resume()
        for connection in self._connections:
            connection.close()
        for process in self.processes:
            process.join(timeout=5.0)
            if process.is_alive():
                process.kill()
                process.join()
        self._folder.cleanup()


_MOST_RANKS = 21
"""Ranks that are kept: those of groups of up to six. Each takes some 200 MB."""


class RankGroups:
    """One group per world size, suspended while it is not in use, restarted after a failure.

    A group that was not used for the longest time is closed where there would be too many ranks.
    """

    def __init__(self) -> None:
        self._groups: dict[int, RankGroup] = {}  # by size, the least recently used first

    def run(self, world_size: int, function: Callable[..., Any], *args: Any) -> list[Any]:
        """Call a function on every rank of the group of that size; see :meth:`RankGroup.run`."""
        group = self._groups.pop(world_size, None) or self._new_group(world_size)
        self._groups[world_size] = group
        group.resume()
        try:
            results = group.run(function, *args)
        except BaseException:
            self._groups.pop(world_size).close()
            raise
        group.suspend()
        return results

    def _new_group(self, world_size: int) -> RankGroup:
        while self._groups and sum(self._groups) + world_size > _MOST_RANKS:
            self._groups.pop(next(iter(self._groups))).close()
        return RankGroup(world_size)

    def close(self) -> None:
        """End all processes; later calls start new ones."""
        while self._groups:
            self._groups.popitem()[1].close()


@cache
def mesh_of(dims: ParallelDims) -> DeviceMesh:
    """The mesh of a layout over all ranks, built once per rank."""
    return dims.build_mesh("cpu", timeout_s=GROUP_TIMEOUT_S)


def random_tensors(
    seed: int, shapes: Sequence[tuple[int, ...]], dtype: torch.dtype = torch.float32
) -> list[torch.Tensor]:
    """Normally distributed tensors, the same on every rank."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def _serve(
    connection: Connection[Any, Any],
    store: str,
    rank: int,
    world_size: int,
    device_type: str,
    warnings_are: Literal["error", "ignore"],
) -> None:
    """Run one rank: call the functions received until the connection is closed."""
    warnings.simplefilter(warnings_are)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    if device_type == "cuda":
        torch.cuda.set_device(rank)
    dist.init_process_group(
        "nccl" if device_type == "cuda" else "gloo",
        store=dist.FileStore(store, world_size),
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=GROUP_TIMEOUT_S),
    )
    healthy = True
    while True:
        try:
            function, args = connection.recv()
        except EOFError:
            break
        try:
            connection.send((True, function(*args)))
        except BaseException:
            healthy = False
            connection.send((False, traceback.format_exc()))
    if healthy:
        dist.barrier()  # without it, gloo ranks abort at exit now and then
        dist.destroy_process_group()
