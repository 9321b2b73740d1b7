"""Names and shapes of the weight tensors of common layers.

They are generated lazily, so that memory does not grow with a configured number of layers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

Shape = tuple[int, ...]
NamedShapes = Iterator[tuple[str, Shape]]


def convolution(name: str, channels_in: int, width: int, size: int) -> NamedShapes:
    """Weight and bias of a three-dimensional convolution."""
    yield f"{name}.weight", (width, channels_in, size, size, size)
    yield f"{name}.bias", (width,)


def linear(name: str, size_in: int, size_out: int, bias: bool = True) -> NamedShapes:
    """Weight and bias of a linear layer."""
    yield f"{name}.weight", (size_out, size_in)
    if bias:
        yield f"{name}.bias", (size_out,)


def norm(name: str, width: int) -> NamedShapes:
    """Weight and bias of a normalization."""
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)


def shapes_of(tensors: NamedShapes) -> list[Shape]:
    """The shapes alone."""
    return [shape for _, shape in tensors]


def num_values(tensors: NamedShapes) -> int:
    """Total number of values."""
    return sum(math.prod(shape) for _, shape in tensors)


def matrices(tensors: NamedShapes) -> list[Shape]:
    """Shapes of those with two dimensions: in a block, the weights of linear layers."""
    return [shape for _, shape in tensors if len(shape) == 2]
