"""HunyuanVideo attention over a sequence split across ranks.

Legend: B videos, n local tokens (video, then text), N heads, H head size, D model width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh

from longtake.parallel import TokenShards, usp_attention
from longtake.pipelines.tokens import rotate_


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
    """

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
        two_streams = attn.add_q_proj is not None
        if two_streams:
            q, k, v = _joint_projections(
                attn, hidden_states, encoder_hidden_states, context.head_size
            )
        else:
            tokens = torch.cat([hidden_states, encoder_hidden_states], dim=1)
            q, k, v = _projections(attn, tokens, context.head_size)
        out = usp_attention(
            rotate_(q, context.rotation),
            rotate_(k, context.rotation),
            v,
            mesh=context.mesh,
            shards=context.shards,
            kernel=context.kernel,
        )
        first, last = out.flatten(2).tensor_split((num_first,), dim=1)
        if two_streams:
            return attn.to_out[1](attn.to_out[0](first)), attn.to_add_out(last)
        return first, last


def _projections(attn: Any, tokens: torch.Tensor, head_size: int) -> list[torch.Tensor]:
    """q, k and v of one stream, ``[B, n, N, H]`` each; q and k are normalized."""
    heads = (-1, head_size)
    q, k, v = (
        project(tokens).unflatten(-1, heads) for project in (attn.to_q, attn.to_k, attn.to_v)
    )
    return [_normalized(attn.norm_q, q), _normalized(attn.norm_k, k), v]


def _joint_projections(
    attn: Any, video: torch.Tensor, text: torch.Tensor, head_size: int
) -> list[torch.Tensor]:
    """q, k and v of both streams, concatenated along the sequence: video, then text."""
    heads = (-1, head_size)
    q, k, v = (
        project(text).unflatten(-1, heads)
        for project in (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
    )
    text_qkv = [_normalized(attn.norm_added_q, q), _normalized(attn.norm_added_k, k), v]
    video_qkv = _projections(attn, video, head_size)
    return [torch.cat(pair, dim=1) for pair in zip(video_qkv, text_qkv, strict=True)]


def _normalized(norm: Any, x: torch.Tensor) -> torch.Tensor:
    normalized: torch.Tensor = x if norm is None else norm(x)
    return normalized
