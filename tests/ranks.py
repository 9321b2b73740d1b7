"""Groups of ranks that stay up for a whole run of the tests, or of a benchmark.

Processes of CPUs are forked from one that has imported torch, so that starting them costs next to
nothing.
A caller hands a group a function of some module and its arguments; every rank calls it and hands
back what it returns. Tests share one group a world size.
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
"""For how long a rank waits for another in the shared groups."""


class RankFailure(AssertionError):
    """A function failed on some ranks; holds what each of them said."""


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
            grace_s: how long the others have to answer once one has failed.
            call_timeout_s: how long all have to answer.
            device_type: "cpu" (gloo) or "cuda" (NCCL, a device a rank).
            warnings_are: what becomes of warnings on the ranks.
        """
        self._call_timeout_s = call_timeout_s
        self._grace_s = grace_s
        context: Any = mp.get_context("spawn")  # CUDA outlives no fork, and diffusers asks for it
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
        """Call ``function(*args)`` on every rank; return what each returned.

        Raises:
            RankFailure: it raised on a rank, or a rank died or hung. The group is then of no use.
        """
        answers = self.outcomes(function, *args)
        failures = [f"rank {rank}: {said}" for rank, (ok, said) in enumerate(answers) if not ok]
        if failures:
            raise RankFailure("\n".join(failures))
        return [returned for _, returned in answers]

    def outcomes(self, function: Callable[..., Any], *args: Any) -> list[tuple[bool, Any]]:
        """Call ``function(*args)`` on every rank; say of each whether it returned, and what."""
        for connection in self._connections:
            connection.send((function, args))
        answers = {rank: (False, "no answer") for rank in range(len(self.processes))}
        pending: dict[Any, int] = {c: rank for rank, c in enumerate(self._connections)}
        deadline = time.monotonic() + self._call_timeout_s
        while pending:
            ready: list[Any] = wait(pending, timeout=max(0, deadline - time.monotonic()))
            if not ready:
                break
            for connection in ready:
                rank = pending.pop(connection)
                try:
                    answers[rank] = connection.recv()
                except (EOFError, ConnectionError):
                    answers[rank] = (False, "the process died")
                if not answers[rank][0]:
                    deadline = min(deadline, time.monotonic() + self._grace_s)
        return list(answers.values())

    def suspend(self) -> None:
        """Stop the processes until :meth:`resume`: gloo's threads poll, which takes cores."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let suspended processes go on."""
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


class RankGroups:
    """The groups of one test run, one a world size, suspended while they are not in use. A group
    that failed is started anew."""

    def __init__(self) -> None:
        self._groups: dict[int, RankGroup] = {}

    def run(self, world_size: int, function: Callable[..., Any], *args: Any) -> list[Any]:
        """Call a function on every rank of the group of that size (see RankGroup.run)."""
        if world_size not in self._groups:
            self._groups[world_size] = RankGroup(world_size)
        group = self._groups[world_size]
        group.resume()
        try:
            returned = group.run(function, *args)
        except BaseException:
            self._groups.pop(world_size).close()
            raise
        group.suspend()
        return returned

    def close(self) -> None:
        """End all processes; those that are needed again are started anew."""
        while self._groups:
            self._groups.popitem()[1].close()


@cache
def mesh_of(dims: ParallelDims) -> DeviceMesh:
    """The mesh of a layout over all ranks of the group, built once on each rank."""
    return dims.build_mesh("cpu", timeout_s=GROUP_TIMEOUT_S)


def random_tensors(
    seed: int, shapes: Sequence[tuple[int, ...]], dtype: torch.dtype = torch.float32
) -> list[torch.Tensor]:
    """The same tensors on every rank."""
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
    """One rank: call what arrives until the other end closes."""
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
        dist.barrier()  # without it gloo's ranks abort at exit now and then
        dist.destroy_process_group()
