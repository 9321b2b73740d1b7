"""Sources of a component's tensors: their names, and how they are read."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch

from longtake.errors import ModelError, one_line
from longtake.pipelines.loading.files.model_files import merge_tensors, read_header
from longtake.pipelines.loading.files.open_file import OpenFile
from longtake.pipelines.loading.files.tensor_files import Tensor

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Dtypes by their names in the safetensors format."""

TILE_ROWS = 64
"""Rows that a source computes together, if it computes values: they begin at multiples of it."""

_CHUNK_BYTES = 2 * 2**20
"""Bytes that :func:`read_into` holds at a time: a core's cache holds them until they are copied."""


class TensorSource(Protocol):
    """Named tensors that can be read whole or by rows.

    A source may wrap another one, to rename its tensors or to compute new ones from them.
    """

    @property
    def label(self) -> str:
        """What holds the tensors, for error messages, such as a component's folder."""

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """Dtype and shape of each tensor, by name."""

    def read(self, name: str, rows: slice | None = None) -> torch.Tensor:
        """Read a tensor into host memory, in its stored dtype.

        Args:
            name: A key of :attr:`tensors`.
            rows: Range along the first dimension; None is all of it.

        Raises:
            ModelError: The tensor cannot be read.
        """


@runtime_checkable
class BlockSource(TensorSource, Protocol):
    """A source that also gives matrices as GGUF files store them: rows of blocks of codes."""

    @property
    def block_types(self) -> Mapping[str, str]:
        """Block type of each matrix that is stored in blocks, all of one type, by name."""

    def read_blocks(self, name: str, rows: slice | None = None) -> torch.Tensor:
        """Read rows of blocks.

        Args:
            name: A key of :attr:`block_types`.
            rows: Range of rows; None is all of them.

        Returns:
            ``[rows, bytes of a row's blocks]``, uint8.

        Raises:
            ModelError: The tensor cannot be read.
        """


def block_types(source: TensorSource) -> Mapping[str, str]:
    """Block type of each matrix that a source can give in blocks, by name."""
    return source.block_types if isinstance(source, BlockSource) else {}


def read_into(target: torch.Tensor, source: TensorSource, name: str, first: int = 0) -> None:
    """Read rows of a tensor into another one, whose dtype they are converted to, some at a time.

    Args:
        target: As many rows, on any device.
        source: The source.
        name: A key of ``source.tensors``.
        first: The first row.

    Raises:
        ModelError: The tensor cannot be read.
    """
    if target.dim() == 0:
        target.copy_(source.read(name))
        return
    num_tiles = _CHUNK_BYTES * len(target) // (TILE_ROWS * max(1, target.nbytes))
    num_rows = max(1, num_tiles) * TILE_ROWS  # so that a source computes no tile twice
    begin, end = first, first + len(target)
    while begin < end:
        stop = min(end, begin - begin % num_rows + num_rows)
        target[begin - first : stop - first].copy_(source.read(name, slice(begin, stop)))
        begin = stop


class SafetensorsSource:
    """The tensors of a component's safetensors files.

    Files are not memory-mapped: a disk that fails would then end the process, and pages of the file
    would count as its memory. They stay open as long as the source is referenced.

    Args:
        files: The files, at least one, all in one folder.

    Raises:
        ModelError: A file is missing or damaged, or two files hold the same tensor.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self.label = str(files[0].parent)
        headers = [read_header(path) for path in files]
        self.tensors: Mapping[str, Tensor] = merge_tensors(headers)
        self._file_of = {
            name: (file, 8 + len(header.header))
            for header, file in zip(headers, map(OpenFile, files), strict=True)
            for name in header.tensors
        }

    def read(self, name: str, rows: slice | None = None) -> torch.Tensor:
        """Read a tensor, or a range of its rows; see :meth:`TensorSource.read`."""
        stored = self.tensors[name]
        if stored.dtype not in DTYPES:
            raise ModelError(f"{name} in {self.label} is {stored.dtype}, which is not read here")
        file, values_begin = self._file_of[name]
        shape, begin = stored.shape, values_begin + stored.offsets[0]
        row_bytes = math.prod(shape[1:]) * DTYPES[stored.dtype].itemsize
        if rows is not None:
            first, end, _ = rows.indices(shape[0])
            begin += first * row_bytes
            shape = (max(0, end - first), *shape[1:])
        tensor = torch.empty(shape, dtype=DTYPES[stored.dtype])
        try:
            file.read_into(tensor, begin)
        except OSError as error:
            raise ModelError(
                f"{name} cannot be read from {self.label}: {one_line(error)}"
            ) from error
        return tensor


class UsedTensors:
    """A source without the tensors that a module does not have, by a pattern of their names.

    Args:
        source: The source.
        unused: Pattern that matches the whole names of the tensors to leave out.
    """

    def __init__(self, source: TensorSource, unused: re.Pattern[str]) -> None:
        self._source, self.label = source, source.label
        self.tensors: Mapping[str, Tensor] = {
            name: each for name, each in source.tensors.items() if not unused.fullmatch(name)
        }

    def read(self, name: str, rows: slice | None = None) -> torch.Tensor:
        """Read a tensor; see :meth:`TensorSource.read`."""
        return self._source.read(name, rows)

    @property
    def block_types(self) -> Mapping[str, str]:
        """Block types of the tensors that stay; see :class:`BlockSource`."""
        return {k: v for k, v in block_types(self._source).items() if k in self.tensors}

    def read_blocks(self, name: str, rows: slice | None = None) -> torch.Tensor:
        """Read rows of blocks; see :meth:`BlockSource.read_blocks`."""
        assert isinstance(self._source, BlockSource)
        return self._source.read_blocks(name, rows)
