"""Wan's attention over a sequence split across ranks.

Legend: B videos, n local tokens, N heads, H head size, D model width, L text keys, K image keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh

from longtake.parallel import ParallelDims, TokenShards, usp_attention
from longtake.pipelines.chunks import TOKENS_PER_CHUNK
from longtake.pipelines.tokens import new_heads, rotate, token_chunks

_ONE_RANK = ParallelDims()


@dataclass(frozen=True)
class SelfAttentionContext:
    """Arguments of the self-attention of all blocks in one pass.

    Passed through the blocks as diffusers' ``rotary_emb`` argument, which reaches self-attention
    only.

    Attributes:
        shards: Ownership of the video tokens by rank.
        mesh: Device mesh of the sequence-parallel ranks; None for a single rank.
        rotation: ``[n, H / 2]``, complex64: rotary embedding of the local tokens.
        kernel: Name of the local attention kernel.
    """

    shards: TokenShards
    mesh: DeviceMesh | None
    rotation: torch.Tensor
    kernel: str


@dataclass(frozen=True)
class CrossAttentionKeys:
    """What the cross attention of all blocks attends to, whole on every rank.

    Passed through the blocks as diffusers' ``encoder_hidden_states`` argument, which reaches cross
    attention only.

    Attributes:
        text: Embedded text, ``[1, L, D]``, shared by all videos.
        image: Embedded pictures, ``[1, K, D]``; None for models without image keys.
        kernel: Name of the local attention kernel.
    """

    text: torch.Tensor
    image: torch.Tensor | None
    kernel: str


class UspAttnProcessor:
    """A stateless diffusers attention processor for Wan's self-attention and cross attention.

    Self-attention runs across ranks. Cross attention sends nothing: every rank has all keys. q and
    k are normalized over all heads together, so before heads are exchanged for tokens.

    Args:
        tokens_per_chunk: Largest number of tokens that are projected, normalized and rotated at
            once, and that attend to the text at once.
    """

    def __init__(self, tokens_per_chunk: int = TOKENS_PER_CHUNK) -> None:
        self._tokens_per_chunk = tokens_per_chunk

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: CrossAttentionKeys | None,
        attention_mask: None,
        rotary_emb: SelfAttentionContext | None,
    ) -> torch.Tensor:
        """Attend from the local tokens to the whole video, or to the text and the pictures.

        Args:
            attn: diffusers' ``WanAttention`` module.
            hidden_states: Local tokens, ``[B, n, D]``.
            encoder_hidden_states: Keys of cross attention; None in self-attention.
            attention_mask: Always None: text is padded with zeros that the model attends to.
            rotary_emb: Sequence shard and rotary embedding in self-attention; otherwise None.

        Returns:
            ``[B, n, D]``.
        """
        if rotary_emb is not None:
            return _projected(attn, self._self_attention(attn, hidden_states, rotary_emb))
        assert encoder_hidden_states is not None
        return self._cross_attention(attn, hidden_states, encoder_hidden_states)

    def _self_attention(
        self, attn: Any, tokens: torch.Tensor, context: SelfAttentionContext
    ) -> torch.Tensor:
        """Attention of the local tokens to the whole video, ``[B, n, N, H]``."""
        q, k, v = new_heads(tokens, tokens.shape[1], attn.heads, attn.inner_dim // attn.heads)
        for rows, chunk in token_chunks([tokens], self._tokens_per_chunk):
            rotation = context.rotation[rows]
            rotate(_heads(attn, attn.norm_q(attn.to_q(chunk))), rotation, out=q[:, rows])
            rotate(_heads(attn, attn.norm_k(attn.to_k(chunk))), rotation, out=k[:, rows])
            v[:, rows] = _heads(attn, attn.to_v(chunk))
        return usp_attention(
            q, k, v, mesh=context.mesh, shards=context.shards, kernel=context.kernel
        )

    def _cross_attention(
        self, attn: Any, tokens: torch.Tensor, keys: CrossAttentionKeys
    ) -> torch.Tensor:
        """Attention to the text plus, with image keys, attention to the pictures: ``[B, n, D]``."""
        kv = [(attn.norm_k(attn.to_k(keys.text)), attn.to_v(keys.text))]
        if keys.image is not None:
            image_keys = attn.norm_added_k(attn.add_k_proj(keys.image))
            kv.append((image_keys, attn.add_v_proj(keys.image)))
        result = tokens.new_empty(tokens.shape)
        for rows, chunk in token_chunks([tokens], self._tokens_per_chunk):
            q = _heads(attn, attn.norm_q(attn.to_q(chunk)))
            out, *others = (
                _attend_whole(q, _heads(attn, k), _heads(attn, v), keys.kernel) for k, v in kv
            )
            result[:, rows] = _projected(attn, sum(others, out))
        return result


def _projected(attn: Any, out: torch.Tensor) -> torch.Tensor:
    """The output ``[B, n, D]`` of attention ``[B, n, N, H]``."""
    projected: torch.Tensor = attn.to_out[1](attn.to_out[0](out.flatten(2)))
    return projected


def _attend_whole(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, kernel: str) -> torch.Tensor:
    """Attention to keys that this rank has all of, the same for all videos."""
    return usp_attention(
        q,
        k.expand(len(q), -1, -1, -1),
        v.expand(len(q), -1, -1, -1),
        mesh=None,
        shards=TokenShards.even(q.shape[1], _ONE_RANK),
        kv_shards=TokenShards.even(k.shape[1], _ONE_RANK),
        kernel=kernel,
    )


def _heads(attn: Any, x: torch.Tensor) -> torch.Tensor:
    """``[B, n, D]`` to ``[B, n, N, H]``; n may be 0."""
    heads: torch.Tensor = x.unflatten(2, (attn.heads, attn.inner_dim // attn.heads))
    return heads
