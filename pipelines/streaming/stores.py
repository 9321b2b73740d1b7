"""Where blocks of weights wait: in host memory, or in the files of a checkpoint."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch

from longtake.errors import ModelError
from longtake.parallel import World
from longtake.pipelines.loading.tensor_source import TensorSource, read_into
from longtake.pipelines.loading.threads import in_order
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
        self.read_some(number, target, self.source.tensors.keys())

    def read_some(self, number: int, target: torch.Tensor, names: Collection[str]) -> None:
        """Read those tensors of a block whose names in the source are among ``names``."""
        for name, view in self.layouts[number].views(target).items():
            if (stored := self.names[number][name]) in names:
                read_into(view, self.source, stored)


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
        self.layouts, self._files, self._world = files.layouts, files, world
        sizes = [layout.num_bytes for layout in self.layouts]
        self._begins = [0, *itertools.accumulate(sizes)]
        self._memory = SharedMemory.allocate(sum(sizes), world, option)
        failure = self._read_own_blocks(files.source.tensors.keys())
        self._memory.pin(world, failure)  # which also waits for the blocks that other ranks read

    def reload(self, names: Collection[str]) -> None:
        """Read tensors again, whose values in the source have changed. Collective.

        Args:
            names: Names in the source of all tensors that have changed.

        Raises:
            ModelError: On all ranks; one cannot read a block.
        """
        self._world.any_rank(False)  # until all ranks are done with the values that were here
        for failure in self._world.gather_json(self._read_own_blocks(names)):
            if failure is not None:
                raise ModelError(failure)

    def pinned(self, number: int) -> torch.Tensor | None:
        """The block's bytes, if they are pinned."""
        return self._bytes(number) if self._memory.is_pinned else None

    def read(self, number: int, target: torch.Tensor) -> None:
        """Copy a block; see :meth:`BlockStore.read`."""
        source = self._bytes(number)
        target[: len(source)].copy_(source)

    def _read_own_blocks(self, names: Collection[str]) -> str | None:
        """Read tensors of this rank's share of the blocks; returns why one cannot be read."""
        ranks = self._world.host_ranks
        numbers = range(ranks.index(self._world.rank), len(self.layouts), len(ranks))
        read = self._files.read_some
        try:
            for _ in in_order(partial(read, each, self._bytes(each), names) for each in numbers):
                pass
        except ModelError as error:
            return str(error)
        return None

    def _bytes(self, number: int) -> torch.Tensor:
        return self._memory.values[self._begins[number] : self._begins[number + 1]]
