"""HunyuanVideo attention over a sequence split across ranks.

Legend: B videos, n local tokens (video, then text), N heads, H head size, D model width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from longtake.parallel import TokenShards, usp_attention
from longtake.pipelines.chunks import TOKENS_PER_CHUNK
from longtake.pipelines.tokens import new_heads, rotate, token_chunks


@dataclass(frozen=True)
class AttentionContext:
    """Arguments of attention that the blocks of one guidance branch share.

    Passed through the blocks as diffusers' ``image_rotary_emb`` argument.

    Attributes:
        shards: Ownership of the sequence's tokens by rank.
        mesh: Device mesh of the sequence-parallel ranks; None for a single rank.
        rotation: ``[n, H / 2]``, complex: rotary embedding of the local tokens; 1 for text.
        kernel: Name of the local attention kernel.
    """

    shards: TokenShards
    mesh: DeviceMesh | None
    rotation: torch.Tensor
    kernel: str

    @property
    def head_size(self) -> int:
        """Head size H."""
        return 2 * self.rotation.shape[-1]


class UspAttnProcessor:
    """A stateless diffusers attention processor that computes exact attention across ranks.

    Supports the double-stream blocks, where video and text have separate projections, and the
    single-stream blocks, where the caller may split the sequence at any token.

    Args:
        tokens_per_chunk: Largest number of tokens that are projected, normalized and rotated at
            once.
    """

    def __init__(self, tokens_per_chunk: int = TOKENS_PER_CHUNK) -> None:
        self._tokens_per_chunk = tokens_per_chunk

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        attention_mask: None,
        image_rotary_emb: AttentionContext,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Attend from the local tokens to the whole sequence.

        Args:
            attn: diffusers' ``Attention`` module.
            hidden_states: First v local tokens, ``[B, v, D]``.
            encoder_hidden_states: Remaining local tokens, ``[B, n - v, D]``.
            attention_mask: Always None: padding has been removed.
            image_rotary_emb: Sequence shard and rotary embedding of the n local tokens.

        Returns:
            Attention outputs in the shapes of ``hidden_states`` and ``encoder_hidden_states``.
        """
        context, num_first = image_rotary_emb, hidden_states.shape[1]
        q, k, v = self._project(attn, (hidden_states, encoder_hidden_states), context)
        out = usp_attention(
            q, k, v, mesh=context.mesh, shards=context.shards, kernel=context.kernel
        )
        del q, k, v
        first, last = out.flatten(2).tensor_split((num_first,), dim=1)
        if attn.add_q_proj is not None:
            return attn.to_out[1](attn.to_out[0](first)), attn.to_add_out(last)
        # The caller keeps the second part to its end: as a view it would keep all of the output.
        return first, last.clone()

    def _project(
        self, attn: Any, segments: Sequence[torch.Tensor], context: AttentionContext
    ) -> Sequence[torch.Tensor]:
        """q, k and v of all local tokens, ``[B, n, N, H]`` each; q and k normalized and rotated."""
        rotation = context.rotation
        heads = new_heads(segments[0], len(rotation), attn.heads, context.head_size)
        layers = _Layers(attn.to_q, attn.to_k, attn.to_v, attn.norm_q, attn.norm_k)
        if attn.add_q_proj is None:
            self._fill(heads, segments, layers, rotation)
            return heads
        added = attn.add_q_proj, attn.add_k_proj, attn.add_v_proj
        text_layers = _Layers(*added, attn.norm_added_q, attn.norm_added_k)
        video, text = (slice(segments[0].shape[1]), slice(segments[0].shape[1], None))
        for segment, rows, own in zip(segments, (video, text), (layers, text_layers), strict=True):
            self._fill([each[:, rows] for each in heads], [segment], own, rotation[rows])
        return heads

    def _fill(
        self,
        heads: Sequence[torch.Tensor],
        segments: Sequence[torch.Tensor],
        layers: _Layers,
        rotation: torch.Tensor,
    ) -> None:
        """Compute q, k and v of one stream, chunk by chunk."""
        q, k, v = heads
        for rows, tokens in token_chunks(segments, self._tokens_per_chunk):
            for to, norm, target in (
                (layers.to_q, layers.norm_q, q),
                (layers.to_k, layers.norm_k, k),
            ):
                projected = _normalized(norm, to(tokens).unflatten(-1, target.shape[2:]))
                rotate(projected, rotation[rows], out=target[:, rows])
            v[:, rows] = layers.to_v(tokens).unflatten(-1, v.shape[2:])


class _Layers(NamedTuple):
    """Projections and norms of a stream."""

    to_q: nn.Module
    to_k: nn.Module
    to_v: nn.Module
    norm_q: nn.Module | None
    norm_k: nn.Module | None


def _normalized(norm: nn.Module | None, x: torch.Tensor) -> torch.Tensor:
    normalized: torch.Tensor = x if norm is None else norm(x)
    return normalized
