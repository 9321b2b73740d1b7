"""The tensors of one block in one buffer of bytes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

_ALIGNMENT = 256
"""Bytes; that of CUDA's allocations, which fast kernels expect."""


@dataclass(frozen=True)
class _Place:
    dtype: torch.dtype
    shape: torch.Size
    begin: int

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def end(self) -> int:
        return self.begin + self.num_bytes


class BlockLayout:
    """Where each tensor of a block begins in the block's buffer.

    Args:
        tensors: Tensors of the shapes and dtypes to lay out, by name; their values do not matter.

    Attributes:
        num_bytes: Size of the buffer.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self._places: dict[str, _Place] = {}
        end = 0
        for name, tensor in tensors.items():
            self._places[name] = place = _Place(tensor.dtype, tensor.shape, _aligned(end))
            end = place.end
        self.num_bytes = _aligned(end)

    def views(self, buffer: torch.Tensor) -> dict[str, torch.Tensor]:
        """The tensors in a buffer, by name.

        Args:
            buffer: ``[num_bytes]`` or longer, uint8.
        """
        return {
            name: buffer[place.begin : place.end].view(place.dtype).view(place.shape)
            for name, place in self._places.items()
        }


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // _ALIGNMENT) * _ALIGNMENT
