"""Brings the weights of blocks to the device one after the other, the next while one computes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from longtake.errors import EngineError, ModelError
from longtake.pipelines.streaming.layout import BlockLayout
from longtake.pipelines.streaming.slots import GpuSlot, HostSlot, Slot, pinned_bytes
from longtake.pipelines.streaming.stores import BlockStore

_NUM_SLOTS = 2
"""One block computes while the next arrives."""


@dataclass(frozen=True)
class _Block:
    """A block that is streamed.

    Attributes:
        store: Its store.
        number: Its number there.
        tensors: Its parameters and persistent buffers, by their names in the layout.
        absent: What each of them is while the weights are elsewhere.
    """

    store: BlockStore
    number: int
    tensors: Mapping[str, torch.Tensor]
    absent: Mapping[str, torch.Tensor]

    @property
    def layout(self) -> BlockLayout:
        """The layout of its tensors."""
        return self.store.layouts[self.number]

    def bind(self, buffer: torch.Tensor) -> None:
        """Let the tensors be views of a buffer."""
        for name, view in self.layout.views(buffer).items():
            self.tensors[name].data = view

    def unbind(self) -> None:
        """Take the weights away."""
        for name, absent in self.absent.items():
            self.tensors[name].data = absent


class BlockStreamer:
    """Holds the weights of two blocks on the device: one computes, and the next arrives.

    A block's parameters are views of the device's buffer between :meth:`acquire` and
    :meth:`release`. At all other times they have their shapes and dtypes, and are not a number, so
    that a block which is called on its own has a result that is refused. Weights are only copied:
    results are those of resident weights, to the bit.

    Args:
        device: The rank's device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._blocks: dict[nn.Module, _Block] = {}
        self._held: dict[Slot, nn.Module] = {}  # by slot, the least recently filled first
        self._computing: nn.Module | None = None
        self._awaited: nn.Module | None = None  # prefetched, and not called yet
        self._before: nn.Module | None = None
        self._after: dict[nn.Module, nn.Module] = {}
        self._reader: ThreadPoolExecutor | None = None
        self._copies: torch.cuda.Stream | None = None

    def add(self, blocks: Sequence[nn.Module], store: BlockStore) -> None:
        """Take over blocks.

        Args:
            blocks: Blocks, on the ``meta`` device, in the order of the store's numbers.
            store: Holds the tensors of each block's state dict, under the same names.

        Raises:
            ModelError: The driver does not pin the buffers through which the store is read.
        """
        if self._device.type == "cuda" and blocks and store.pinned(0) is None:
            largest = max(layout.num_bytes for layout in store.layouts)
            _ = [pinned_bytes(largest) for _ in range(_NUM_SLOTS)]  # torch keeps them for the slots
        for number, block in enumerate(blocks):
            layout = store.layouts[number]
            meta = torch.empty(layout.num_bytes, dtype=torch.uint8, device="meta")
            absent = {
                name: _not_a_number(view, self._device) for name, view in layout.views(meta).items()
            }
            block.load_state_dict(absent, assign=True)
            block.requires_grad_(False)
            tensors = block.state_dict(keep_vars=True)
            self._blocks[block] = _Block(store, number, tensors, absent)

    @property
    def slot_bytes(self) -> int:
        """Bytes on the device while blocks run."""
        sizes = [block.layout.num_bytes for block in self._blocks.values()]
        return _NUM_SLOTS * max(sizes, default=0)

    def prefetch(self, block: nn.Module) -> None:
        """Start to bring a block's weights, unless they are here, or on their way."""
        if block not in self._blocks:
            return
        self._awaited = block
        if block in self._held.values():
            return
        slot = self._free_slot()
        found = self._blocks[block]
        self._held[slot] = block
        slot.fill(found.store, found.number, self._reader_thread())

    def acquire(self, block: nn.Module) -> None:
        """Give a block its weights, for operations that are launched from now on.

        Raises:
            EngineError: They cannot be read any more.
        """
        if block not in self._blocks:
            return
        self.prefetch(block)
        slot = self._slot_of(block)
        try:
            slot.wait()
        except BaseException as error:
            del self._held[slot]  # so that a later call reads the block again
            if isinstance(error, ModelError):
                raise EngineError(str(error)) from error  # the work has begun
            raise
        if self._before is not None:
            self._after[self._before] = block
        self._computing = self._before = block
        self._awaited = None
        self._blocks[block].bind(slot.buffer)

    def release(self, block: nn.Module) -> None:
        """Take a block's weights away, and bring those of the block that followed it last time."""
        if block not in self._blocks:
            return
        self._blocks[block].unbind()
        self._slot_of(block).computed()
        self._computing = None
        if self._awaited is None and block in self._after:
            self.prefetch(self._after[block])

    @contextmanager
    def weights_of(self, block: nn.Module) -> Iterator[None]:
        """Give a block its weights within the context.

        Raises:
            EngineError: They cannot be read any more.
        """
        self.acquire(block)
        try:
            yield
        finally:
            self.release(block)

    def free(self) -> None:
        """Free the device's memory, until the next block is brought."""
        for slot in self._held:
            slot.close()
        self._held.clear()
        self._before = self._awaited = None
        if self._reader is not None:
            self._reader.shutdown()
            self._reader = None

    def _slot_of(self, block: nn.Module) -> Slot:
        return next(slot for slot, held in self._held.items() if held is block)

    def _free_slot(self) -> Slot:
        """A slot for another block: a new one, or the one that was filled first."""
        if len(self._held) < _NUM_SLOTS:
            return self._new_slot()
        slot = next(slot for slot, held in self._held.items() if held is not self._computing)
        del self._held[slot]
        return slot

    def _new_slot(self) -> Slot:
        num_bytes = self.slot_bytes // _NUM_SLOTS
        if self._device.type != "cuda":
            return HostSlot(num_bytes, self._device)
        if self._copies is None:
            self._copies = torch.cuda.Stream(self._device)
        return GpuSlot(num_bytes, self._device, self._copies)

    def _reader_thread(self) -> ThreadPoolExecutor:
        if self._reader is None:
            self._reader = ThreadPoolExecutor(1, thread_name_prefix="longtake-weights")
        return self._reader


def takes_memory(tensor: torch.Tensor) -> bool:
    """Whether a tensor has values of its own; that of a block whose weights are elsewhere has not.

    Args:
        tensor: A parameter or a buffer, whole or sharded.
    """
    return tensor.numel() <= 1 or any(tensor.stride())


def _not_a_number(like: torch.Tensor, device: torch.device) -> torch.Tensor:
    """One value, expanded to a tensor's shape: it takes no memory."""
    if like.dtype.is_floating_point:
        value = torch.tensor(torch.nan).to(like.dtype)
    else:
        value = torch.zeros((), dtype=like.dtype)
    return value.to(device).expand(like.shape)
