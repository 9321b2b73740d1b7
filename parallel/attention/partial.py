"""Sums of partial results: attention over parts of the keys, gradients over tiles.

Legend: B batch, S query tokens, T key tokens, n query heads, m KV heads, H head size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

from longtake.parallel.attention.mask import Tile
from longtake.parallel.kernels.kernel import SavedTensors

TileAttention = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, bool], tuple[torch.Tensor, torch.Tensor | None]
]
"""(q_BSnH, k_BTmH, v_BTmH, causal) -> (out_BSnH, lse_BSn), with at least one key."""

TileBackward = Callable[
    [torch.Tensor, SavedTensors, bool], tuple[torch.Tensor, torch.Tensor, torch.Tensor]
]
"""(grad_out_BSnH, saved, causal) -> (dq_BSnH, dk_BTmH, dv_BTmH), with at least one key."""


class PartialAttention:
    """Attention of some queries over the keys so far.

    Results over further keys are merged by log-sum-exp, in float32 (float64 for float64).

    Args:
        q_BSnH: The queries.
    """

    def __init__(self, q_BSnH: torch.Tensor) -> None:
        self._q = q_BSnH
        self._out: torch.Tensor | None = None
        self._lse: torch.Tensor | None = None

    def add(
        self,
        k_BTmH: torch.Tensor,
        v_BTmH: torch.Tensor,
        tiles: Iterable[Tile],
        attend: TileAttention,
    ) -> None:
        """Attend to a block of keys, tile by tile; with several tiles there is a log-sum-exp."""
        for tile in tiles:
            keys, values = k_BTmH[:, tile.keys], v_BTmH[:, tile.keys]
            out, lse = attend(self._q[:, tile.queries], keys, values, tile.causal)
            if self._out is None and out.shape == self._q.shape:
                self._out, self._lse = out, lse
            else:
                assert lse is not None, "merging needs a log-sum-exp"
                self._merge(tile.queries, out, lse)

    def result(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """``out_BSnH`` in q's dtype, and ``lse_BSn`` unless the kernel computes none."""
        if self._out is None:  # there are no queries
            self._start()
        assert self._out is not None
        return self._out.to(self._q.dtype), self._lse

    def _merge(self, queries: slice, out: torch.Tensor, lse: torch.Tensor) -> None:
        """Merge the attention of some queries over other keys, in place."""
        if self._out is None:
            self._start()
        assert self._out is not None and self._lse is not None, "merging needs a log-sum-exp"
        self._out = self._out.to(lse.dtype)
        so_far = self._lse[:, queries]
        share = torch.sigmoid(lse - so_far)  # exp(lse) / (exp(so_far) + exp(lse))
        self._out[:, queries].lerp_(out.to(lse.dtype), share.unsqueeze(-1))
        self._lse[:, queries] = torch.logaddexp(so_far, lse)

    def _start(self) -> None:
        """Attention over no keys: its log-sum-exp is the logarithm of 0."""
        wide = torch.promote_types(self._q.dtype, torch.float32)
        self._out = torch.zeros_like(self._q, dtype=wide)
        self._lse = self._q.new_full(self._q.shape[:3], -torch.inf, dtype=wide)


class GradientSum:
    """The gradient of a tensor, summed in float32 (float64 for float64).

    Args:
        tensor: ``[B, T, m, H]``.
    """

    def __init__(self, tensor: torch.Tensor) -> None:
        self._tensor = tensor
        self._sum: torch.Tensor | None = None

    def add(self, rows: slice, part: torch.Tensor) -> None:
        """Add the gradient of some rows. Its memory may be reused."""
        if self._sum is None and part.shape == self._tensor.shape:
            is_whole = 0 < part.nbytes == part.untyped_storage().nbytes()
            self._sum = part if is_whole else part.clone()  # not part of a larger buffer
            return
        wide = torch.promote_types(part.dtype, torch.float32)
        if self._sum is None:
            self._sum = torch.zeros_like(self._tensor, dtype=wide)
        self._sum = self._sum.to(wide)
        self._sum[:, rows] += part

    def total(self, num_rows: int | None = None) -> torch.Tensor:
        """The sum in the tensor's dtype, of the first rows or of all."""
        if self._sum is None:
            return torch.zeros_like(self._tensor[:, :num_rows])
        return self._sum[:, :num_rows].to(self._tensor.dtype)


def add_gradients(
    sums: tuple[GradientSum, GradientSum, GradientSum],
    grad_out_BSnH: torch.Tensor,
    saved: SavedTensors,
    tiles: Iterable[Tile],
    backward: TileBackward,
) -> None:
    """Add the gradients of q, k and v of one block of keys.

    Args:
        sums: Sums of the gradients of q, k and v.
        grad_out_BSnH: Gradient of the attention of all queries.
        saved: The queries and the block; ``out`` and ``lse`` over all keys.
        tiles: The tiles of the queries and the block.
        backward: Gradients of one tile.
    """
    q, k, v, out, lse = saved
    for tile in tiles:
        own, keys = tile.queries, tile.keys
        inputs = SavedTensors(q[:, own], k[:, keys], v[:, keys], out[:, own], lse[:, own])
        parts = backward(grad_out_BSnH[:, own], inputs, tile.causal)
        for gradient, rows, part in zip(sums, (own, keys, keys), parts, strict=True):
            gradient.add(rows, part)
