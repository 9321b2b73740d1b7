"""Adds LoRAs to weights while they are read from a source."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from longtake.pipelines.loading.files.tensor_files import Tensor
from longtake.pipelines.loading.tensor_source import (
    TILE_ROWS,
    BlockSource,
    SafetensorsSource,
    TensorSource,
    block_types,
)
from longtake.pipelines.lora.additions import Addition, read_addition
from longtake.pipelines.lora.lora_file import LoraFile
from longtake.pipelines.lora.match import Deltas


class LoraSource:
    """A source with LoRAs added to its tensors, in float32 and before any other conversion.

    Values are computed in tiles of rows that begin at multiples of :data:`TILE_ROWS`, so that they
    do not depend on the ranges that are read. Tensors that no LoRA changes are read
    as they are, in their own dtype; so are all of them if every scale is 0.

    Args:
        source: The source of the base weights.
        deltas: What is added, by name of the tensor; see :meth:`apply`.

    Attributes:
        label: What holds the base weights.
        tensors: Dtype and shape of each tensor, by name; changed ones are float32.

    Raises:
        ModelError: As :meth:`apply`.
    """

    def __init__(self, source: TensorSource, deltas: Deltas | None = None) -> None:
        self._source, self.label = source, source.label
        self.apply(deltas or {})

    @property
    def touched(self) -> frozenset[str]:
        """Names of the tensors that are changed."""
        return frozenset(self._deltas)

    def apply(self, deltas: Deltas) -> None:
        """Replace what is added to the tensors; nothing gives those of the base.

        Args:
            deltas: What is added, by name of the tensor. Those of scale 0 are not added.

        Raises:
            ModelError: A LoRA cannot be read, or was changed since its header was read.
        """
        added = {
            name: tuple(each for each in found if each.scale != 0) for name, found in deltas.items()
        }
        added = {name: found for name, found in added.items() if found}
        files = {each.file.path: each.file for found in added.values() for each in found}
        self._files = {path: _open(file) for path, file in files.items()}
        self._deltas: Deltas = added
        self._latest = _Latest()
        base = self._source.tensors
        changed = {name: replace(base[name], dtype="F32") for name in self._deltas if name in base}
        self.tensors: Mapping[str, Tensor] = {**base, **changed}

    def read(self, name: str, rows: slice | None = None) -> torch.Tensor:
        """Read a tensor; see :meth:`TensorSource.read`. Changed ones are float32."""
        if name not in self._deltas:
            return self._source.read(name, rows)
        shape = self.tensors[name].shape
        columns = math.prod(shape[1:])
        additions = self._read_additions(name, columns)
        begin, end, _ = (rows or slice(None)).indices(shape[0])
        first = begin - begin % TILE_ROWS
        last = max(first, min(-(-end // TILE_ROWS) * TILE_ROWS, shape[0]))
        values = torch.empty(last - first, columns)
        for row in range(first, last, TILE_ROWS):
            tile = values[row - first :][:TILE_ROWS]
            base = self._source.read(name, slice(row, row + len(tile)))
            _add(additions, tile.copy_(base.reshape(-1, columns)), row)
        return values[begin - first : max(begin, end) - first].reshape(-1, *shape[1:])

    @property
    def block_types(self) -> Mapping[str, str]:
        """Block types of the tensors that no LoRA changes; see :class:`.BlockSource`."""
        types = block_types(self._source)
        return {name: each for name, each in types.items() if name not in self._deltas}

    def read_blocks(self, name: str, rows: slice | None = None) -> torch.Tensor:
        """Read rows of blocks; see :meth:`.BlockSource.read_blocks`."""
        assert isinstance(self._source, BlockSource)
        return self._source.read_blocks(name, rows)

    def _read_additions(self, name: str, columns: int) -> Sequence[Addition]:
        """What is added to a tensor, which is kept until another one is read."""
        latest = self._latest
        if name != latest.name:
            latest.additions = [
                read_addition(each, self._files[each.file.path], columns)
                for each in self._deltas[name]
            ]
            latest.name = name
        return latest.additions


class _Latest(threading.local):
    """The tensor that a thread has read last, and what is added to it."""

    name = ""
    additions: Sequence[Addition] = ()


def _add(additions: Sequence[Addition], tile: torch.Tensor, row: int) -> None:
    """Add LoRAs to a tile of the base, whose first row has a number in the weight."""
    base = tile.clone() if any(each.magnitude is not None for each in additions) else tile
    for each in additions:
        each.add_to(tile, base, row)


def _open(file: LoraFile) -> TensorSource:
    """A LoRA's file, which is the one that was matched, and whose digest is known."""
    source = SafetensorsSource([file.path])
    source.label = str(file.path)
    file.check_unchanged()  # what was opened is what was matched
    return source
