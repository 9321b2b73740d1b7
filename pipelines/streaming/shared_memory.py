"""Host memory that the ranks of a host share, and that their GPUs read directly."""

from __future__ import annotations

import mmap
import os
import weakref
from contextlib import suppress
from dataclasses import dataclass, field

import torch

from longtake.errors import ModelError, one_line
from longtake.parallel import World
from longtake.pipelines.codec.memory import free_bytes

_MARGIN_BYTES = 2**29
"""Memory that an allocation leaves to the rest of the host."""

_NAME = "longtake weights"
"""Name of the memory in /proc."""

_CPU = torch.device("cpu")


@dataclass
class SharedMemory:
    """Bytes that one copy a host holds, mapped by each of its ranks.

    The memory has no name in the file system, and ends with the last process that maps it. Those
    who allocate it on several ranks must call :meth:`pin` on all of them before it is used.

    Attributes:
        values: ``[num_bytes]``, uint8.
        option: Option of the command line that chose this place, for error messages.
        is_pinned: Whether a GPU copies from it without the help of the host.
    """

    values: torch.Tensor
    option: str = "--weights"
    is_pinned: bool = field(default=False, init=False)

    @classmethod
    def allocate(cls, num_bytes: int, world: World, option: str = "--weights") -> SharedMemory:
        """Allocate memory of undefined content. Collective: all ranks call it.

        Args:
            num_bytes: Size, the same on all ranks.
            world: All ranks.
            option: As in :class:`SharedMemory`.

        Raises:
            ModelError: On all ranks; a host has too little memory, or its ranks cannot share it.
        """
        leader = world.host_ranks[0]
        descriptor, failure = -1, None
        if world.rank == leader:
            try:
                descriptor = _create(num_bytes, shared=len(world.host_ranks) > 1)
            except (OSError, AttributeError, ModelError) as error:
                failure = (
                    f"no host memory for {_gib(num_bytes)} of weights: {one_line(error)}; try "
                    f"{option} disk, which reads each block when it is needed"
                )
        # Each leader keeps its descriptor open until all ranks of its host have opened it.
        created = world.gather_json([os.getpid(), descriptor, failure])
        _raise_first([failure for _, _, failure in created])
        values, failure = None, None
        try:
            pid, number, _ = created[leader]
            values = _map(num_bytes, pid, number)
        except (OSError, ValueError) as error:
            failure = (
                f"rank {world.rank} cannot map the weights in the memory of rank {leader}: "
                f"{one_line(error)}; try {option} disk"
            )
        failures = world.gather_json(failure)
        if descriptor >= 0:
            os.close(descriptor)
        _raise_first(failures)
        assert values is not None
        return cls(values, option)

    def pin(self, world: World, failure: str | None = None) -> None:
        """Pin the memory for the GPUs of all ranks. Collective; on the CPU, wait for all ranks.

        Args:
            world: All ranks.
            failure: Why this rank could not fill its part of the memory; None if it could.

        Raises:
            ModelError: On all ranks; one could not fill its part, or its driver refuses.
        """
        if failure is None and world.device.type == "cuda" and len(self.values) > 0:
            failure = _pin(self.values, self.option)
            self.is_pinned = failure is None
            if self.is_pinned:
                unpin = torch.cuda.cudart().cudaHostUnregister
                weakref.finalize(self, unpin, self.values.data_ptr())
        _raise_first(world.gather_json(failure))


def _create(num_bytes: int, *, shared: bool) -> int:
    """A descriptor of new memory; -1 for memory of this process alone.

    Raises:
        OSError: The system refuses.
        ModelError: The host has too little free memory.
    """
    free = free_bytes(_CPU)
    if num_bytes + _MARGIN_BYTES > free:
        raise ModelError(
            f"{_gib(free)} are free on this host, of which {_gib(_MARGIN_BYTES)} must stay so"
        )
    if not shared or num_bytes == 0:
        return -1
    descriptor = os.memfd_create(_NAME)
    try:
        os.posix_fallocate(descriptor, 0, num_bytes)  # a lack of memory is an error, not a signal
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _map(num_bytes: int, pid: int, descriptor: int) -> torch.Tensor:
    """Map memory that a process of this host has created, or new memory of this process alone."""
    if num_bytes == 0:
        return torch.empty(0, dtype=torch.uint8)
    if descriptor < 0:
        return torch.frombuffer(mmap.mmap(-1, num_bytes), dtype=torch.uint8)
    path = f"/proc/{pid}/fd/{descriptor}"
    if not os.readlink(path).startswith(f"/memfd:{_NAME}"):
        raise ValueError(f"{path} is another file: the ranks are in different containers")
    own = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        return torch.frombuffer(mmap.mmap(own, num_bytes), dtype=torch.uint8)
    finally:
        os.close(own)


def _pin(values: torch.Tensor, option: str) -> str | None:
    """Pin memory; returns why the driver refused, or None."""
    try:
        code = torch.cuda.cudart().cudaHostRegister(values.data_ptr(), values.nbytes, 0)
        torch.cuda.check_error(int(code))
    except RuntimeError as error:
        with suppress(RuntimeError):  # raised again by the next kernel, unless it is seen here
            torch.zeros(1, device="cuda")
        return (
            f"the driver does not pin {_gib(values.nbytes)} of host memory for weights "
            f"({one_line(error)[:100]}): raise the limit of locked memory (ulimit -l; WSL pins "
            f"half of its memory at most), or try {option} disk"
        )
    return None


def _raise_first(failures: list[str | None]) -> None:
    for failure in failures:
        if failure is not None:
            raise ModelError(failure)


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.1f} GiB"
