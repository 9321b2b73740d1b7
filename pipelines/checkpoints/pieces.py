"""Checks that the tensors of a file make up those of a module; without torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from longtake.errors import ModelError
from longtake.pipelines.checkpoints.layout import Piece, TensorNames
from longtake.pipelines.loading.files.model_files import printable
from longtake.pipelines.loading.files.tensor_files import Tensor

Rows = tuple[int, int]


@dataclass(frozen=True)
class Span:
    """Where the values of a piece are.

    Attributes:
        name: The tensor's name in the file, without its prefix.
        rows: Its first row and the end of its rows (exclusive).
        row_size: Values in a row of the tensor.
    """

    name: str
    rows: Rows
    row_size: int

    @property
    def num_values(self) -> int:
        """Values of the piece."""
        return (self.rows[1] - self.rows[0]) * self.row_size


def span_of(piece: Piece, tensor: Tensor) -> Span:
    """Where the values of a piece are in its tensor; a scalar has one row."""
    num_rows = tensor.shape[0] if tensor.shape else 1
    return Span(piece.name, piece.rows or (0, num_rows), math.prod(tensor.shape[1:]))


def assemble(
    stored: Mapping[str, Tensor],
    names: TensorNames,
    shapes: Mapping[str, tuple[int, ...]],
    unused: Callable[[str], bool],
    label: str,
) -> dict[str, Tensor]:
    """The tensors of a module, as headers without offsets.

    Every value of every tensor is used, or the layout calls the tensor unused.

    Args:
        stored: Tensors of the file, by their names without the prefix.
        names: The pieces of the module's tensors.
        shapes: The shapes of the module's tensors.
        unused: Whether the file may hold a tensor that the module does not have.
        label: What holds the tensors, for error messages.

    Raises:
        ModelError: A tensor is missing, of another size, or used in part or not at all.
    """
    _check_names(stored, {piece.name for name in shapes for piece in names[name]}, unused, label)
    read: dict[str, list[Rows]] = {}
    assembled = {}
    for name, shape in shapes.items():
        spans = [span_of(piece, stored[piece.name]) for piece in names[name]]
        if not _makes_up(spans, stored, shape):
            found = " and ".join(str(stored[span.name].shape) for span in spans)
            raise ModelError(
                f"{label} holds {printable(spans[0].name)} of shape {found}, and the model's "
                f"{name} is of shape {shape}: they are not of the same model"
            )
        for span in spans:
            read.setdefault(span.name, []).append(span.rows)
        assembled[name] = Tensor(_dtype({stored[span.name].dtype for span in spans}), shape, (0, 0))
    for name, rows in read.items():
        if not _covers(rows, stored[name]):
            raise ModelError(
                f"{label} holds {printable(name)} of shape {stored[name].shape}, and the model has "
                "another number of its rows: they are not of the same model"
            )
    return assembled


def _check_names(
    stored: Mapping[str, Tensor], needed: set[str], unused: Callable[[str], bool], label: str
) -> None:
    """Check that a file holds all tensors that are needed, and no others but unused ones."""
    if missing := sorted(needed - stored.keys()):
        raise ModelError(
            f"{label} lacks {printable(missing[0])} ({len(missing)} missing): it is not whole, or "
            "of another size than its configuration says"
        )
    if unknown := sorted(name for name in stored.keys() - needed if not unused(name)):
        raise ModelError(
            f"{label} holds {printable(unknown[0])}, which the model does not have "
            f"({len(unknown)} too many): it is another kind of model, or of another size"
        )


def _makes_up(spans: list[Span], stored: Mapping[str, Tensor], shape: tuple[int, ...]) -> bool:
    """Whether rows make up a tensor of a shape: as many, each of as many values; or a piece is of
    the same shape but for dimensions of size 1. A transposed weight does not."""
    num_rows = sum(span.rows[1] - span.rows[0] for span in spans)
    if num_rows == (shape[0] if shape else 1) and {span.row_size for span in spans} == {
        math.prod(shape[1:])
    }:
        return True
    of_piece = (num_rows, *stored[spans[0].name].shape[1:])
    return len(spans) == 1 and _long_sizes(of_piece) == _long_sizes(shape)


def _long_sizes(shape: tuple[int, ...]) -> list[int]:
    return [size for size in shape if size != 1]


def _dtype(dtypes: set[str]) -> str:
    """The dtype of values of several dtypes together."""
    return dtypes.pop() if len(dtypes) == 1 else "F32"


def _covers(ranges: list[Rows], tensor: Tensor) -> bool:
    """Whether ranges are rows of a tensor, and all of them."""
    end = 0
    for first, last in sorted(ranges):
        if first > end or last < first:
            return False
        end = max(end, last)
    return end == (tensor.shape[0] if tensor.shape else 1)
