"""Reads tensors of files of weights in any format, by rows, and decodes those of fewer bits."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import torch

from longtake.errors import ModelError, one_line
from longtake.pipelines.checkpoints.formats.float8_scales import FLOAT8_DTYPES, scale_kind
from longtake.pipelines.checkpoints.formats.gguf_decoding import decode_blocks
from longtake.pipelines.checkpoints.formats.gguf_types import BLOCK_TYPES, tensor_bytes
from longtake.pipelines.checkpoints.formats.headers import FileTensors, read_headers
from longtake.pipelines.loading.files.model_files import printable
from longtake.pipelines.loading.files.open_file import OpenFile
from longtake.pipelines.loading.files.tensor_files import Tensor
from longtake.pipelines.loading.tensor_source import DTYPES, TensorSource

_CHUNK_VALUES = 2**17
"""Values that are decoded at a time: a core's cache holds what decoding needs for them."""


def open_source(paths: Sequence[Path]) -> TensorSource:
    """Open files of weights to be read; they stay open as long as the source is referenced.

    Args:
        paths: The files, at least one, whose tensors belong together.

    Raises:
        ModelError: As :func:`~longtake.pipelines.checkpoints.formats.headers.read_headers`, or a
            scale is not finite.
    """
    return FileSource(read_headers(*paths))


class FileSource:
    """The tensors of files of weights; see :class:`TensorSource`.

    float8 weights are read as float32, multiplied by their scales; blocks of GGUF as float32.

    Args:
        headers: The files' headers.

    Raises:
        ModelError: A file cannot be opened, or a scale is not finite.
    """

    def __init__(self, headers: FileTensors) -> None:
        paths = [file.path for file in headers.files]
        self.label = str(paths[0] if len(paths) == 1 else paths[0].parent)
        self.tensors: Mapping[str, Tensor] = headers.tensors
        self._stored, self._scale_of = headers.stored, headers.scales.of
        try:
            self._files = {path: OpenFile(path) for path in paths}
        except OSError as error:
            raise ModelError(f"{self.label} cannot be read: {one_line(error)}") from error
        for name in self._scale_of.values():
            if not self._read_stored(name, None).isfinite().all():
                raise ModelError(
                    f"{self.label} holds {printable(name)}, a scale that is not finite: the file "
                    "is damaged, download it again"
                )

    def read(self, name: str, rows: slice | None = None) -> torch.Tensor:
        """Read a tensor, or a range of its rows; see :meth:`TensorSource.read`."""
        if self._stored[name][1].dtype in BLOCK_TYPES:
            return self._read_blocks(name, rows)
        values = self._read_stored(name, rows)
        if self._stored[name][1].dtype not in FLOAT8_DTYPES:
            return values
        decoded = values.float()
        if name in self._scale_of:
            self._scale(decoded, name, rows)
        return decoded

    @cached_property
    def block_types(self) -> Mapping[str, str]:
        """Block type of each matrix in blocks; see :class:`.BlockSource`."""
        stored = {name: self._stored[name][1] for name in self.tensors}
        return {
            name: each.dtype
            for name, each in stored.items()
            if each.dtype in BLOCK_TYPES
            and len(each.shape) == 2
            and each.shape[1] % BLOCK_TYPES[each.dtype].num_values == 0
        }

    def read_blocks(self, name: str, rows: slice | None = None) -> torch.Tensor:
        """Read rows of blocks, not decoded; see :meth:`.BlockSource.read_blocks`."""
        shape = self.tensors[name].shape
        first, end, _ = (rows or slice(None)).indices(shape[0])
        row_bytes = tensor_bytes(shape[1], self.block_types[name])
        blocks = torch.empty(max(0, end - first), row_bytes, dtype=torch.uint8)
        self._fill(blocks, name, first * row_bytes)
        return blocks

    def _scale(self, values: torch.Tensor, name: str, rows: slice | None) -> None:
        """Multiply a weight's rows by its scale, in place."""
        scale_name = self._scale_of[name]
        shape = self._stored[name][1].shape
        kind = scale_kind(self._stored[scale_name][1].shape, shape)
        scale = self._read_stored(scale_name, None if kind == "tensor" else rows).float()
        if kind == "tensor":
            values.mul_(scale.reshape(()))
        elif kind == "row":
            values.mul_(scale.reshape(-1, *(1,) * (values.dim() - 1)))
        else:
            groups = math.prod(self._stored[scale_name][1].shape) // shape[0]
            values.unflatten(1, (groups, -1)).mul_(scale.reshape(len(values), groups, 1))

    def _read_blocks(self, name: str, rows: slice | None) -> torch.Tensor:
        """Decode the blocks that rows of a tensor lie in, some at a time."""
        stored = self._stored[name][1]
        block = BLOCK_TYPES[stored.dtype]
        shape, begin, end = _span(stored.shape, rows)
        first, last = begin // block.num_values, -(-end // block.num_values)
        values = torch.empty((last - first) * block.num_values)
        num_blocks = max(1, _CHUNK_VALUES // block.num_values)
        for at in range(first, last, num_blocks):
            blocks = torch.empty(min(num_blocks, last - at), block.num_bytes, dtype=torch.uint8)
            self._fill(blocks, name, at * block.num_bytes)
            decoded = decode_blocks(blocks, stored.dtype).view(-1)
            values[(at - first) * block.num_values :][: len(decoded)] = decoded
        skipped = begin - first * block.num_values
        return values[skipped : skipped + end - begin].view(shape)

    def _read_stored(self, name: str, rows: slice | None) -> torch.Tensor:
        """Read rows of a tensor in its stored dtype."""
        stored = self._stored[name][1]
        if stored.dtype not in DTYPES:
            raise ModelError(
                f"{self.label} holds {printable(name)} as {stored.dtype}, which is not read here"
            )
        shape, begin, _ = _span(stored.shape, rows)
        values = torch.empty(shape, dtype=DTYPES[stored.dtype])
        self._fill(values, name, begin * values.itemsize)
        return values

    def _fill(self, target: torch.Tensor, name: str, begin: int) -> None:
        """Fill a tensor with bytes of a stored one, from an offset in it."""
        file, stored = self._stored[name]
        try:
            self._files[file.path].read_into(target, stored.offsets[0] + begin)
        except OSError as error:
            raise ModelError(
                f"{printable(name)} cannot be read from {self.label}: {one_line(error)}"
            ) from error


def _span(shape: tuple[int, ...], rows: slice | None) -> tuple[tuple[int, ...], int, int]:
    """Shape of some rows of a tensor, and the numbers of their first value and of their end."""
    if rows is None:
        return shape, 0, math.prod(shape)
    first, end, _ = rows.indices(shape[0])
    row = math.prod(shape[1:])
    return (max(0, end - first), *shape[1:]), first * row, max(first, end) * row
