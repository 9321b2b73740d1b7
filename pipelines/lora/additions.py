"""The values that LoRAs add to weights, by rows.

Legend: R rows and C columns of a change, r its rank, K the kernel of a convolution; n rows of a
tile.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from longtake.errors import ModelError
from longtake.pipelines.loading.files.model_files import printable
from longtake.pipelines.loading.tensor_source import TensorSource
from longtake.pipelines.lora.adapters import Adapter
from longtake.pipelines.lora.match import Delta
from longtake.pipelines.lora.part_names import Kind

_EPSILON = torch.finfo(torch.float32).eps
"""What LyCORIS adds to the norms of rows, some of which may be 0."""


class Change(Protocol):
    """The change of an adapter, before it is multiplied by anything."""

    def add_to(self, values: torch.Tensor, rows: slice, factor: float) -> None:
        """Add rows of the change to float32 values.

        Args:
            values: ``[n, C]``, contiguous.
            rows: The n rows of the change.
            factor: What they are multiplied by.
        """


@dataclass(frozen=True)
class LowRankChange:
    """up ``[R, r]`` @ down ``[r, C]``."""

    up: torch.Tensor
    down: torch.Tensor

    def add_to(self, values: torch.Tensor, rows: slice, factor: float) -> None:
        """See :meth:`Change.add_to`."""
        values.addmm_(self.up[rows], self.down, alpha=factor)


@dataclass(frozen=True)
class ProductChange:
    """The product of two changes of low rank, value by value (LoHa)."""

    one: LowRankChange
    other: LowRankChange

    def add_to(self, values: torch.Tensor, rows: slice, factor: float) -> None:
        """See :meth:`Change.add_to`."""
        one, other = (each.up[rows] @ each.down for each in (self.one, self.other))
        values.add_(one.mul_(other), alpha=factor)


@dataclass(frozen=True)
class KroneckerChange:
    """The Kronecker product of ``[a, b]`` and ``[R / a, C / b]`` (LoKr)."""

    one: torch.Tensor
    other: torch.Tensor

    def add_to(self, values: torch.Tensor, rows: slice, factor: float) -> None:
        """See :meth:`Change.add_to`."""
        numbers = torch.arange(rows.start, rows.stop)
        one = self.one[numbers // len(self.other)]
        other = self.other[numbers % len(self.other)]
        values.add_((one[:, :, None] * other[:, None, :]).flatten(1), alpha=factor)


@dataclass(frozen=True)
class PlainChange:
    """Values ``[R, C]`` as they stand."""

    values: torch.Tensor

    def add_to(self, values: torch.Tensor, rows: slice, factor: float) -> None:
        """See :meth:`Change.add_to`."""
        values.add_(self.values[rows], alpha=factor)


@dataclass(frozen=True)
class Addition:
    """What one LoRA adds to a weight.

    With a magnitude m (DoRA), the rows of W + factor * change are given the norms m, and the scale
    multiplies the difference from W. peft instead multiplies the change alone by the scale; they
    agree at scale 1, and only this one gives W at scale 0. W is the base, without other LoRAs.

    Attributes:
        delta: Where it is added, and how much of it.
        change: The values.
        magnitude: m, ``[R, 1]``; None without one.
    """

    delta: Delta
    change: Change
    magnitude: torch.Tensor | None = None

    def add_to(self, values: torch.Tensor, base: torch.Tensor, first: int) -> None:
        """Add what belongs to rows of the weight.

        Args:
            values: ``[n, C]``, contiguous, float32: the rows, to which other LoRAs were added.
            base: ``[n, C]``, float32: the rows without any.
            first: The first row's number in the weight.
        """
        delta, (row, end) = self.delta, self.delta.rows
        begin, stop = max(first, delta.begin), min(first + len(values), delta.begin + end - row)
        if begin >= stop:
            return
        rows = slice(row + begin - delta.begin, row + stop - delta.begin)
        values, base = values[begin - first : stop - first], base[begin - first : stop - first]
        if self.magnitude is None:
            self.change.add_to(values, rows, delta.scale * delta.adapter.factor)
            return
        changed = base.clone()
        self.change.add_to(changed, rows, delta.adapter.factor)
        norms = torch.linalg.vector_norm(changed, dim=1, keepdim=True).add_(_EPSILON)
        changed.mul_(self.magnitude[rows] / norms)
        values.add_(changed.sub_(base), alpha=delta.scale)


def read_addition(delta: Delta, source: TensorSource, columns: int) -> Addition:
    """Read the values of an adapter.

    Args:
        delta: The adapter, and where it is added.
        source: The adapter's file.
        columns: C of the weight.

    Raises:
        ModelError: A tensor cannot be read, or has a value that is not finite.
    """
    parts = _Parts(delta.adapter, source)
    magnitude = parts["magnitude"].reshape(-1, 1) if delta.adapter.sets_norms else None
    return Addition(delta, _CHANGES[delta.adapter.kind](parts, columns), magnitude)


class _Parts:
    """The parts of an adapter, read as float32."""

    def __init__(self, adapter: Adapter, source: TensorSource) -> None:
        self._names, self._source = adapter.parts, source

    def __contains__(self, part: str) -> bool:
        return part in self._names

    def __getitem__(self, part: str) -> torch.Tensor:
        name = self._names[part]
        values = self._source.read(name).float()
        if not bool(values.isfinite().all()):
            raise ModelError(
                f"{self._source.label} holds {printable(name)} with a value that is not finite: "
                "download the LoRA again"
            )
        return values

    def low_rank(self, up: str, down: str, core: str) -> LowRankChange:
        """A product of two parts ``[R, r]`` and ``[r, C]``; with a core ``[r, r, K]`` between them,
        that of three (Tucker's decomposition of a convolution)."""
        rows, columns = self[up].flatten(1), self[down].flatten(1)
        if core in self:
            kernel = self[core]
            kernel = kernel.reshape(*kernel.shape[:2], -1)
            columns = torch.einsum("pqk,qi->pik", kernel, columns).flatten(1)
        return LowRankChange(rows, columns)

    def of_lycoris(self, name: str, core: str) -> LowRankChange:
        """The product of a and b, or of three, for which LyCORIS stores a as ``[r, R]``."""
        product = self.low_rank(f"{name}_a", f"{name}_b", core)
        return replace(product, up=product.up.T.contiguous()) if core in self else product

    def kronecker_factor(self, name: str, core: str) -> torch.Tensor:
        """A factor of a Kronecker product, ``[rows, columns]``."""
        if name in self:
            return self[name].flatten(1)
        product = self.of_lycoris(name, core)
        return product.up @ product.down


def _lora(parts: _Parts, columns: int) -> Change:
    return parts.low_rank("up", "down", "mid")


def _loha(parts: _Parts, columns: int) -> Change:
    return ProductChange(parts.of_lycoris("w1", "t1"), parts.of_lycoris("w2", "t2"))


def _lokr(parts: _Parts, columns: int) -> Change:
    one, other = parts.kronecker_factor("w1", ""), parts.kronecker_factor("w2", "t2")
    return KroneckerChange(one, other)


def _diff(parts: _Parts, columns: int) -> Change:
    return PlainChange(parts["diff"].reshape(-1, columns))


_CHANGES: Mapping[Kind, Callable[[_Parts, int], Change]] = {
    "lora": _lora,
    "loha": _loha,
    "lokr": _lokr,
    "diff": _diff,
}
