"""Buffers on a device that one block's weights after the other are brought into."""

from __future__ import annotations

from abc import ABC, abstractmethod
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from longtake.errors import ModelError, one_line
from longtake.pipelines.streaming.stores import BlockStore


class Slot(ABC):
    """A buffer for one block.

    Args:
        num_bytes: Size of the largest block.
        device: The device.

    Attributes:
        buffer: ``[num_bytes]``, uint8, on the device.
    """

    def __init__(self, num_bytes: int, device: torch.device) -> None:
        with torch.inference_mode(False):  # the reader's thread is not in a caller's
            self.buffer = torch.empty(num_bytes, dtype=torch.uint8, device=device)

    @abstractmethod
    def fill(self, store: BlockStore, number: int, reader: ThreadPoolExecutor) -> None:
        """Start to bring a block, once the device has computed with the block before it.

        Args:
            store: Store of the block.
            number: Its number in the store.
            reader: Thread that reads what is not in pinned memory.
        """

    @abstractmethod
    def wait(self) -> None:
        """Let the device compute with the block only once it has arrived.

        Raises:
            ModelError: It could not be read.
        """

    @abstractmethod
    def computed(self) -> None:
        """Called when the last operation on the block has been launched."""

    @abstractmethod
    def close(self) -> None:
        """Wait until nothing is brought any more; errors are of no concern then."""


class HostSlot(Slot):
    """A slot in host memory, for a rank that computes on the CPU."""

    _arriving: Future[None]

    def fill(self, store: BlockStore, number: int, reader: ThreadPoolExecutor) -> None:
        """Read the block in the reader's thread."""
        self._arriving = reader.submit(store.read, number, self.buffer)

    def wait(self) -> None:
        """Wait for the reader."""
        self._arriving.result()

    def computed(self) -> None:
        """Nothing to do: a CPU has computed what was launched."""

    def close(self) -> None:
        """Wait for the reader."""
        self._arriving.exception()


class GpuSlot(Slot):
    """A slot in the memory of a GPU. Copies run on a stream of their own, beside computation.

    Args:
        num_bytes: Size of the largest block.
        device: The GPU.
        copies: The stream of all slots' copies.
    """

    def __init__(self, num_bytes: int, device: torch.device, copies: torch.cuda.Stream) -> None:
        super().__init__(num_bytes, device)
        self._copies = copies
        self._arrived, self._computed = torch.cuda.Event(), torch.cuda.Event()
        self._computed.record(torch.cuda.current_stream(device))  # the allocator may still use it
        self._staged: torch.Tensor | None = None
        self._reading: Future[None] | None = None

    def fill(self, store: BlockStore, number: int, reader: ThreadPoolExecutor) -> None:
        """Copy the block from pinned memory, or read it into pinned memory first."""
        pinned = store.pinned(number)
        if pinned is None:
            self._reading = reader.submit(self._read_and_copy, store, number)
        else:
            self._reading = None
            self._copy(pinned)

    def wait(self) -> None:
        """Make the current stream wait for the copy; the host waits only for the reader."""
        if self._reading is not None:
            self._reading.result()
        self._arrived.wait(torch.cuda.current_stream(self.buffer.device))

    def computed(self) -> None:
        """Mark where the current stream is done with the block."""
        self._computed.record(torch.cuda.current_stream(self.buffer.device))

    def close(self) -> None:
        """Wait for the reader and the copy."""
        if self._reading is not None:
            self._reading.exception()
        self._copies.synchronize()

    @torch.no_grad()
    def _copy(self, pinned: torch.Tensor) -> None:
        self._computed.wait(self._copies)
        with torch.cuda.stream(self._copies):
            self.buffer[: len(pinned)].copy_(pinned, non_blocking=True)
        self._arrived.record(self._copies)

    def _read_and_copy(self, store: BlockStore, number: int) -> None:
        """In the reader's thread: read a block, then copy it."""
        with torch.cuda.device(self.buffer.device):
            if self._staged is None:
                self._staged = pinned_bytes(len(self.buffer))
            self._arrived.synchronize()  # until then the copy of the block before it may go on
            store.read(number, self._staged)
            self._copy(self._staged[: store.layouts[number].num_bytes])


def pinned_bytes(num_bytes: int) -> torch.Tensor:
    """Pinned host memory of undefined content, ``[num_bytes]``, uint8.

    Raises:
        ModelError: The driver refuses.
    """
    try:
        return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)
    except RuntimeError as error:
        raise ModelError(
            f"the driver does not pin {num_bytes / 2**20:.0f} MiB of host memory, through which "
            f"weights are read ({one_line(error)[:100]}): raise the limit of locked memory "
            "(ulimit -l), or close other programs"
        ) from error
