"""Counts the work of torch's operations, by the resource that limits it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch.utils.flop_counter import flop_registry

from longtake.pipelines.costs import Work
from longtake.pipelines.operations import Operation

_aten = torch.ops.aten

_FREE = frozenset(
    (
        _aten.detach,
        _aten.alias,
        _aten.empty,
        _aten.empty_like,
        _aten.empty_strided,
        _aten.new_empty,
        _aten.resize_,
    )
)
"""Operations that launch no kernel, besides views."""

_PRODUCTS = frozenset((_aten.mm, _aten.addmm, _aten._scaled_mm))
_BATCHED_PRODUCTS = frozenset((_aten.bmm, _aten.baddbmm))


class WorkCounter:
    """Sums up the work of the operations that it observes.

    Floating-point operations are exact: torch's own formulas. Memory traffic is that of every
    operation but matrix products, convolutions and attention; a broadcast tensor is read once.

    Args:
        weights: The model's weights. A batched product with one of them is not attention.
    """

    def __init__(self, weights: Iterable[torch.Tensor] = ()) -> None:
        self.linear_flops = self.attention_flops = self.convolution_flops = 0
        self.memory_bytes = self.launches = 0
        self._weights = {_storage(weight) for weight in weights}

    @property
    def work(self) -> Work:
        """The work so far."""
        return Work(
            self.linear_flops,
            self.attention_flops,
            self.convolution_flops,
            self.memory_bytes,
            self.launches,
        )

    def observe(self, operation: Operation) -> None:
        """Add the work of an operation."""
        packet = operation.packet
        if operation.is_view or packet in _FREE or operation.name.startswith("prim::"):
            return
        self.launches += 1
        if "scaled_dot_product" in operation.name:
            query, key, value = operation.args[:3]
            self.attention_flops += attention_flops(query, key, value)
        elif packet in _PRODUCTS:
            self.linear_flops += _flops(operation)
        elif packet in _BATCHED_PRODUCTS:
            if any(_storage(tensor) in self._weights for tensor in operation.inputs):
                self.linear_flops += _flops(operation)
            else:
                self.attention_flops += _flops(operation)
        elif packet is _aten.convolution:
            self._add_convolution(operation)
        elif operation.name.startswith("aten::"):
            read = operation.inputs[1:] if packet is _aten.copy_ else operation.inputs
            self.memory_bytes += sum(map(_moved_bytes, [*read, *operation.outputs]))

    def add_attention(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None = None,
    ) -> None:
        """Add the work of an attention kernel on ``[B, N, S, H]`` tensors, which was not run."""
        self.launches += 1
        self.attention_flops += attention_flops(query, key, value)
        self.memory_bytes += 0 if mask is None else _moved_bytes(mask)

    def _add_convolution(self, operation: Operation) -> None:
        """A convolution of adjacent patches is a matrix product."""
        _, weight, _, stride, padding, _, transposed = operation.args[:7]
        kernel = list(weight.shape[2:])
        patches = kernel == list(stride) and math.prod(kernel) > 1 and not any(padding)
        if patches and not transposed:
            self.linear_flops += _flops(operation)
        else:
            self.convolution_flops += _flops(operation)


def attention_flops(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> int:
    """Floating-point operations of attention on ``[B, N, S, H]`` tensors without a causal mask:
    scores, and their product with the values."""
    num_queries = math.prod(query.shape[:-1])
    return 2 * num_queries * key.shape[-2] * (query.shape[-1] + value.shape[-1])


def _flops(operation: Operation) -> int:
    formula: Any = flop_registry[operation.packet]
    flops: int = formula(*operation.args, **operation.kwargs, out_val=operation.result)
    return flops


def _moved_bytes(tensor: torch.Tensor) -> int:
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    return tensor.element_size() * math.prod(size for size, stride in sizes if stride)


def _storage(tensor: torch.Tensor) -> int:
    """The memory that a tensor and its views share, by identity."""
    return id(tensor.untyped_storage())
