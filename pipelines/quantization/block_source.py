"""Reads the blocks of a GGUF file in place of the weights that they are decoded to."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from longtake.errors import ModelError
from longtake.pipelines.loading.files.tensor_files import Tensor
from longtake.pipelines.loading.tensor_source import BlockSource, TensorSource
from longtake.pipelines.quantization.block_linear import BlockLinear
from longtake.pipelines.quantization.codes import CODE_DTYPE
from longtake.pipelines.quantization.linear import WEIGHT


class BlocksSource:
    """A source that has the blocks of some layers in place of their weights.

    Args:
        source: The source of the weights.
        linears: The layers, by their names in the source.
    """

    def __init__(self, source: TensorSource, linears: Mapping[str, BlockLinear]) -> None:
        self._source, self.label = source, source.label
        self._weights = {f"{name}.{WEIGHT}" for name in linears}
        blocks = {
            f"{name}.{WEIGHT}": Tensor("F8_E4M3", tuple(each.weight.shape), (0, each.weight.nbytes))
            for name, each in linears.items()
        }
        self.tensors: Mapping[str, Tensor] = {**source.tensors, **blocks}

    def read(self, name: str, rows: slice | None = None) -> torch.Tensor:
        """Read a tensor; see :meth:`.TensorSource.read`.

        Raises:
            ModelError: It cannot be read, or the source adds to it what blocks cannot hold.
        """
        if name not in self._weights:
            return self._source.read(name, rows)
        source = self._source
        if not isinstance(source, BlockSource) or name not in source.block_types:
            raise ModelError(
                f"{name} is stored as in its GGUF file, to which no LoRA can be added: leave "
                "storage_dtype=gguf out, or pass int8, float8 or nf4 for it"
            )
        return source.read_blocks(name, rows).view(CODE_DTYPE)
