"""Where blocks of weights wait: in host memory, or in the files of a checkpoint."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from longtake.errors import ModelError
from longtake.parallel import World
from longtake.pipelines.loading.tensor_source import TensorSource, read_into
from longtake.pipelines.streaming.layout import BlockLayout
from longtake.pipelines.streaming.shared_memory import SharedMemory


class BlockStore(Protocol):
    """The weights of numbered blocks, outside of the device."""

    @property
    def layouts(self) -> Sequence[BlockLayout]:
        """The tensors of each block, by number."""

    def pinned(self, number: int) -> torch.Tensor | None:
        """A block's bytes in memory that a GPU copies from by itself, uint8; None if they are not
        in such memory."""

    def read(self, number: int, target: torch.Tensor) -> None:
        """Copy a block's bytes to host memory.

        Args:
            number: Number of the block.
            target: ``[num_bytes of the layout]`` or longer, uint8, on the CPU.

        Raises:
            ModelError: They cannot be read.
        """


@dataclass(frozen=True)
class FileStore:
    """Blocks that are read each time. The system caches as much of the files as it has room for.

    Args:
        layouts: The tensors of each block, in the dtypes that they are converted to.
        source: The source.
        names: Name in the source of each tensor of each block, by its name in the layout.
    """

    layouts: Sequence[BlockLayout]
    source: TensorSource
    names: Sequence[Mapping[str, str]]

    def pinned(self, number: int) -> None:
        """None: the bytes come from files."""

    def read(self, number: int, target: torch.Tensor) -> None:
        """Read a block, tensor by tensor; see :meth:`BlockStore.read`."""
        for name, view in self.layouts[number].views(target).items():
            read_into(view, self.source, self.names[number][name])


class HostStore:
    """Blocks in host memory, one copy a host. Collective: all ranks create it together.

    The ranks of a host read different blocks.

    Args:
        files: The blocks in their files.
        world: All ranks.
        option: Option of the command line that chose this place, for error messages.

    Attributes:
        layouts: The tensors of each block.

    Raises:
        ModelError: On all ranks; one cannot read a block, or a host has too little memory, or does
            not share or pin it.
    """

    def __init__(self, files: FileStore, world: World, option: str = "--weights") -> None:
        self.layouts = files.layouts
        sizes = [layout.num_bytes for layout in self.layouts]
        self._begins = [0, *itertools.accumulate(sizes)]
        self._memory = SharedMemory.allocate(sum(sizes), world, option)
        of_host, failure = world.host_ranks, None
        try:
            for number in range(of_host.index(world.rank), len(sizes), len(of_host)):
                files.read(number, self._bytes(number))
        except ModelError as error:
            failure = str(error)
        self._memory.pin(world, failure)  # which also waits for the blocks that other ranks read

    def pinned(self, number: int) -> torch.Tensor | None:
        """The block's bytes, if they are pinned."""
        return self._bytes(number) if self._memory.is_pinned else None

    def read(self, number: int, target: torch.Tensor) -> None:
        """Copy a block; see :meth:`BlockStore.read`."""
        source = self._bytes(number)
        target[: len(source)].copy_(source)

    def _bytes(self, number: int) -> torch.Tensor:
        return self._memory.values[self._begins[number] : self._begins[number + 1]]
