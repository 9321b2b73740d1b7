"""Encodes weights in fewer bits while they are read from a source."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from longtake.pipelines.loading.tensor_files import Tensor
from longtake.pipelines.loading.tensor_source import TensorSource
from longtake.pipelines.quantization.codes import encode
from longtake.pipelines.quantization.linear import SCALE, WEIGHT, StoredLinear


class EncodingSource:
    """A source in which some layers have codes and scales, in place of their weights.

    Rows are encoded from their stored dtype. The result depends neither on the dtype of compute nor
    on the ranges in which they are read.

    Args:
        source: The source of the weights. Theirs are the shapes of the layers.
        linears: The layers, by their names in the source.
    """

    def __init__(self, source: TensorSource, linears: Mapping[str, StoredLinear]) -> None:
        self._source, self.label = source, source.label
        self._linears = {f"{name}.{WEIGHT}": each for name, each in linears.items()}
        self._weights = {f"{name}.{SCALE}": f"{name}.{WEIGHT}" for name in linears}
        self._scales: tuple[str, slice | None, torch.Tensor] | None = None
        self.tensors: Mapping[str, Tensor] = {
            **source.tensors,
            **{name: _header("F8_E4M3", each.weight) for name, each in self._linears.items()},
            **{
                name: _header("F32", self._linears[weight].weight_scale)
                for name, weight in self._weights.items()
            },
        }

    def read(self, name: str, rows: slice | None = None) -> torch.Tensor:
        """Read a tensor; see :meth:`TensorSource.read`.

        Scales that are read right after the codes of the same rows are not computed again.
        """
        if name in self._weights:
            weight, kept = self._weights[name], self._scales
            if kept is not None and kept[:2] == (weight, rows):
                return kept[2]
            return self._encode(weight, rows)[1]
        if name not in self._linears:
            return self._source.read(name, rows)
        codes, scales = self._encode(name, rows)
        self._scales = name, rows, scales
        return codes

    def _encode(self, name: str, rows: slice | None) -> tuple[torch.Tensor, torch.Tensor]:
        return encode(self._source.read(name, rows), self._linears[name].storage)


def file_shapes(
    shapes: Mapping[str, tuple[int, ...]], linears: Mapping[str, StoredLinear]
) -> dict[str, tuple[int, ...]]:
    """Shapes that the tensors in files must have, by name.

    Args:
        shapes: Shapes of a module's own tensors.
        linears: Its layers that are stored in fewer bits.
    """
    expected = dict(shapes)
    for name, linear in linears.items():
        del expected[f"{name}.{SCALE}"]
        expected[f"{name}.{WEIGHT}"] = (linear.out_features, linear.in_features)
    return expected


def _header(dtype: str, tensor: torch.Tensor) -> Tensor:
    return Tensor(dtype, tuple(tensor.shape), (0, tensor.nbytes))
