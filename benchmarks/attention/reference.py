"""Attention in float64 in one process, at some positions, and the errors against it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from benchmarks.attention.setting import Shape

_NUM_POSITIONS = 64


@dataclass(frozen=True)
class Reference:
    """Attention and its gradients in float64.

    Attributes:
        positions: ``[P]``, positions in the whole sequence.
        tensors: ``[B, P, heads, H]`` each, the rows of those positions: the output, and if they
            were computed the gradients of q, k and v.
    """

    positions: torch.Tensor
    tensors: tuple[torch.Tensor, ...]

    @classmethod
    def of(cls, shape: Shape, dtype: torch.dtype, *, causal: bool, train: bool) -> Reference:
        """Compute the reference of a setting, one head at a time."""
        *inputs, grad_out = (tensor.double() for tensor in shape.tensors(dtype))
        leaves = [tensor.requires_grad_(train) for tensor in inputs]
        out = exact(*leaves, causal=causal)
        gradients = torch.autograd.grad(out, leaves, grad_out) if train else ()
        positions = torch.linspace(0, shape.num_tokens - 1, _NUM_POSITIONS).long().unique()
        return cls(positions, tuple(each.detach()[:, positions] for each in (out, *gradients)))

    def errors(self, own: torch.Tensor, computed: Sequence[torch.Tensor]) -> list[float]:
        """The largest difference of each tensor at the positions that a rank owns.

        Args:
            own: ``[s]``, positions of the rank's tokens.
            computed: ``[B, s, heads, H]`` each: the output and, with gradients, those of q, k, v.
        """
        here, there = (self.positions[:, None] == own[None, :]).nonzero(as_tuple=True)
        return [
            (tensor[:, there].cpu().double() - expected[:, here]).abs().amax().item()
            if len(here)
            else 0.0
            for tensor, expected in zip(computed, self.tensors, strict=False)
        ]


def exact(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    causal: bool = False,
    positions: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention in float64, one head at a time.

    Args:
        q: ``[B, s, N, H]``.
        k: ``[B, S, M, H]``.
        v: ``[B, S, M, H]``.
        causal: Whether a query sees the keys up to its own position only.
        positions: ``[s]``, positions of the queries; None for 0 to ``S - 1``.
    """
    group_size = q.shape[2] // k.shape[2]
    mask = None
    if causal and positions is not None:
        mask = positions[:, None] >= torch.arange(k.shape[1], device=k.device)
    outs = []
    for head in range(q.shape[2]):
        shared = head // group_size
        one_q, one_k, one_v = (
            tensor[:, None, :, at].double() for tensor, at in ((q, head), (k, shared), (v, shared))
        )
        out = F.scaled_dot_product_attention(
            one_q, one_k, one_v, attn_mask=mask, is_causal=causal and mask is None
        )
        outs.append(out.squeeze(1))
    return torch.stack(outs, dim=2)
