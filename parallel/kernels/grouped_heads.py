"""Grouped heads for kernels that want as many KV heads as query heads.

Legend: B batch, t keys, n query heads, m KV heads, H head size.
"""

from __future__ import annotations

import torch


def repeat_heads(kv_BtmH: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Give each of ``num_heads`` (n) query heads a copy of its KV head: ``[B, t, n, H]``."""
    group_size = num_heads // kv_BtmH.shape[2]
    return kv_BtmH if group_size == 1 else kv_BtmH.repeat_interleave(group_size, dim=2)


def sum_groups(grad_BtnH: torch.Tensor, num_kv_heads: int) -> torch.Tensor:
    """Sum the gradients of these copies: ``[B, t, m, H]``."""
    if grad_BtnH.shape[2] == num_kv_heads:
        return grad_BtnH
    groups: torch.Tensor = grad_BtnH.unflatten(2, (num_kv_heads, -1))
    return groups.sum(dim=3)
