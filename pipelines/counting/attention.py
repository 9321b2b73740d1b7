"""Attention observed in a model's pass, instead of computed.

Legend: B videos, s and t a rank's query and key tokens, N query heads, M KV heads, H head size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from longtake.parallel import TokenShards, usp_attention
from longtake.pipelines.costs import AttentionHeads
from longtake.pipelines.counting.work import WorkCounter
from longtake.pipelines.operations import LiveBytes


class AttentionObserver(TorchFunctionMode):
    """Replaces attention by an empty result, and counts it.

    Attention over a mesh is across ranks: its heads are noted, and the planner knows its work from
    them. All other attention is work of the rank.

    Args:
        counter: Counts attention whose keys the rank holds.
        memory: Live bytes of the pass.

    Attributes:
        num_attentions: Attentions across ranks.
        num_tokens: Query tokens of the longest of them.
        live_bytes: Live bytes when attention across ranks begins, including q, k and v: the most.
    """

    def __init__(self, counter: WorkCounter, memory: LiveBytes) -> None:
        super().__init__()
        self._counter, self._memory = counter, memory
        self._shapes: list[tuple[int, int, int]] = []
        self.num_attentions = self.num_tokens = self.live_bytes = 0

    @property
    def heads(self) -> AttentionHeads:
        """The attentions across ranks, with the heads of the widest."""
        num_heads, num_kv_heads, head_size = max(
            self._shapes, key=lambda each: each[0] * each[2], default=(1, 1, 1)
        )
        return AttentionHeads(self.num_attentions, num_heads, num_kv_heads, head_size)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Replace attention; run anything else."""
        if func is usp_attention:
            return self._usp_attention(*args, **(kwargs or {}))
        if func is F.scaled_dot_product_attention:
            return self._local_attention(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _usp_attention(
        self,
        q_BsNH: torch.Tensor,
        k_BtMH: torch.Tensor,
        v_BtMH: torch.Tensor,
        *,
        mesh: Any,
        shards: TokenShards,
        **options: Any,
    ) -> torch.Tensor:
        if mesh is None:
            self._counter.add_attention(
                q_BsNH.transpose(1, 2), k_BtMH.transpose(1, 2), v_BtMH.transpose(1, 2)
            )
        else:
            self.num_attentions += 1
            self.num_tokens = max(self.num_tokens, q_BsNH.shape[1])
            self.live_bytes = max(self.live_bytes, self._memory.live)
            self._shapes.append((q_BsNH.shape[2], k_BtMH.shape[2], q_BsNH.shape[3]))
        return q_BsNH.new_empty(q_BsNH.shape)

    def _local_attention(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        *args: Any,
        **options: Any,
    ) -> torch.Tensor:
        """Attention on ``[B, N, S, H]``, which kernels compute without keeping the scores."""
        self._counter.add_attention(query, key, value, attn_mask)
        heads_last = query.new_empty(
            *query.shape[:-3], query.shape[-2], query.shape[-3], value.shape[-1]
        )
        return heads_last.transpose(-3, -2)
