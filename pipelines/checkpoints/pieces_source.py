"""Reads the tensors of a module from the pieces of a file that they consist of."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property

import torch

from longtake.pipelines.checkpoints.layout import TensorNames
from longtake.pipelines.checkpoints.pieces import Span, span_of
from longtake.pipelines.loading.files.tensor_files import Tensor
from longtake.pipelines.loading.tensor_source import BlockSource, TensorSource, block_types


class PiecesSource:
    """A source of a module's tensors, by their names there, over a source of a file's tensors.

    Only the rows that are asked for are read.

    Args:
        source: The file's tensors.
        names: The pieces of the module's tensors.
        tensors: The module's tensors, as :func:`~.pieces.assemble` returns them.
        prefix: What stands in front of the pieces' names in the file.
        label: What holds the tensors, for error messages; by default that of the source.
    """

    def __init__(
        self,
        source: TensorSource,
        names: TensorNames,
        tensors: Mapping[str, Tensor],
        prefix: str = "",
        label: str = "",
    ) -> None:
        self.label, self.tensors = label or source.label, tensors
        self._source, self._prefix = source, prefix
        self._spans = {
            name: [span_of(piece, source.tensors[prefix + piece.name]) for piece in names[name]]
            for name in tensors
        }
        self._mixed = {
            name
            for name, spans in self._spans.items()
            if len({source.tensors[prefix + span.name].dtype for span in spans}) > 1
        }

    def read(self, name: str, rows: slice | None = None) -> torch.Tensor:
        """Read a tensor, or a range of its rows; see :meth:`.TensorSource.read`."""
        shape = self.tensors[name].shape
        begin, end = 0, math.prod(shape)
        if rows is not None:
            row_size = math.prod(shape[1:])
            first, last, _ = rows.indices(shape[0])
            shape = (max(0, last - first), *shape[1:])
            begin, end = first * row_size, max(first, last) * row_size
        values = self._values(name, begin, end)
        if name in self._mixed:
            values = [each.float() for each in values]
        return (values[0] if len(values) == 1 else torch.cat(values)).reshape(shape)

    @cached_property
    def block_types(self) -> Mapping[str, str]:
        """Block type of each matrix whose pieces are rows of blocks of one type; see
        :class:`.BlockSource`."""
        stored, found = block_types(self._source), {}
        for name, spans in self._spans.items():
            shape = self.tensors[name].shape
            types = {stored.get(self._prefix + span.name) for span in spans}
            if len(shape) == 2 and all(span.row_size == shape[1] for span in spans):
                (type_, *others) = types
                if type_ is not None and not others:
                    found[name] = type_
        return found

    def read_blocks(self, name: str, rows: slice | None = None) -> torch.Tensor:
        """Read rows of blocks; see :meth:`.BlockSource.read_blocks`."""
        assert isinstance(self._source, BlockSource)
        begin, end, _ = (rows or slice(None)).indices(self.tensors[name].shape[0])
        read: list[torch.Tensor] = []
        at = 0
        for span in self._spans[name]:
            low, high = span.rows
            some = slice(low + max(0, begin - at), min(high, low + end - at))
            at += high - low
            if some.start < some.stop or not read:
                read.append(self._source.read_blocks(self._prefix + span.name, some))
        return read[0] if len(read) == 1 else torch.cat(read)

    def _values(self, name: str, begin: int, end: int) -> list[torch.Tensor]:
        """The values of a tensor from ``begin`` to ``end``, flat, a tensor a piece."""
        values = []
        at = 0
        for span in self._spans[name]:
            first, last = max(0, begin - at), min(span.num_values, end - at)
            at += span.num_values
            if first < last:
                values.append(self._read(span, first, last))
        return values or [self._none_of(self._spans[name][0])]

    def _none_of(self, span: Span) -> torch.Tensor:
        """No values, of a piece's dtype."""
        name = self._prefix + span.name
        rows = slice(0, 0) if self._source.tensors[name].shape else None
        return self._source.read(name, rows).flatten()[:0]

    def _read(self, span: Span, begin: int, end: int) -> torch.Tensor:
        """Values of a piece from ``begin`` to ``end``: whole rows are read, and cut."""
        low, high = begin // span.row_size, -(-end // span.row_size)
        rows = slice(span.rows[0] + low, span.rows[0] + high)
        stored = self._source.tensors[self._prefix + span.name]
        whole = not stored.shape or (rows.start, rows.stop) == (0, stored.shape[0])
        read = self._source.read(self._prefix + span.name, None if whole else rows).flatten()
        return read[begin - low * span.row_size : end - low * span.row_size]
