"""Encodes weights in fewer bits while they are read from a source."""

from __future__ import annotations

import threading
from collections.abc import Mapping

import torch

from longtake.pipelines.loading.files.model_files import check_tensors
from longtake.pipelines.loading.files.tensor_files import Tensor
from longtake.pipelines.loading.tensor_source import TensorSource
from longtake.pipelines.quantization.codes import encode
from longtake.pipelines.quantization.linear import SCALE, WEIGHT, StoredLinear


class EncodingSource:
    """A source that has codes and scales of some layers in place of their weights.

    Rows are encoded from the dtype of the files. The result depends neither on the dtype of compute
    nor on the ranges of rows that are read.

    Args:
        source: The source of the weights.
        linears: The layers, by their names in the source.

    Raises:
        ModelError: The weight of a layer is missing, of the wrong shape, or not floating-point.
    """

    def __init__(self, source: TensorSource, linears: Mapping[str, StoredLinear]) -> None:
        self._source, self.label = source, source.label
        self._linears = {f"{name}.{WEIGHT}": each for name, each in linears.items()}
        self._weight_of = {f"{name}.{SCALE}": f"{name}.{WEIGHT}" for name in linears}
        self._latest = _Latest()
        _check_weights(source, self._linears)
        self.tensors: Mapping[str, Tensor] = {
            **source.tensors,
            **{name: _header("F8_E4M3", each.weight) for name, each in self._linears.items()},
            **{
                name: _header("F32", self._linears[weight].weight_scale)
                for name, weight in self._weight_of.items()
            },
        }

    def read(self, name: str, rows: slice | None = None) -> torch.Tensor:
        """Read a tensor; see :meth:`TensorSource.read`.

        Scales are not computed again if a thread reads them after the codes of the same rows.
        """
        if name in self._linears:
            return self._encode(name, rows)
        if name not in self._weight_of:
            return self._source.read(name, rows)
        weight, some = self._weight_of[name], rows or slice(None)
        if weight != self._latest.name or self._latest.scales[some].isnan().any():
            self._encode(weight, rows)
        return self._latest.scales[some]

    def _encode(self, name: str, rows: slice | None) -> torch.Tensor:
        """Codes of a weight's rows, whose scales are kept until another weight is encoded."""
        linear, latest = self._linears[name], self._latest
        if name != latest.name:
            latest.name, latest.scales = name, torch.full(linear.weight_scale.shape, torch.nan)
        codes, scales = encode(self._source.read(name, rows), linear.storage)
        latest.scales[rows or slice(None)] = scales
        return codes


class _Latest(threading.local):
    """The weight that a thread has encoded last, and its scales; those not known are NaN."""

    name = ""
    scales = torch.empty(0)


def _check_weights(source: TensorSource, linears: Mapping[str, StoredLinear]) -> None:
    """Check the weights in files, before any of them is encoded."""
    found = {name: each for name, each in source.tensors.items() if name in linears}
    shapes = {name: (each.out_features, each.in_features) for name, each in linears.items()}
    check_tensors(found, shapes, source.label)


def _header(dtype: str, tensor: torch.Tensor) -> Tensor:
    return Tensor(dtype, tuple(tensor.shape), (0, tensor.nbytes))
