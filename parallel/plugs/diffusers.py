"""USP as an attention processor of Hugging Face diffusers, for models of one's own.

::

    sequence = ShardedSequence(mesh, TokenShards.even(num_tokens, dims))
    block = BasicTransformerBlock(...)                           # or any module with ``Attention``
    for attention in (block.attn1, block.attn2):
        attention.set_processor(UspAttnProcessor(sequence))

Legend: B batch, s/t query/key tokens of this rank, N heads, H head size, D width.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from diffusers.models.embeddings import apply_rotary_emb
from torch import nn

from longtake.errors import ModelError, TensorError
from longtake.parallel.dims import ParallelDims
from longtake.parallel.plugs.sequence import ShardedSequence
from longtake.parallel.shards import TokenShards

_UNSUPPORTED = {
    "norm_cross": "a normalization over all tokens",
    "group_norm": "a normalization over all tokens",
    "spatial_norm": "a normalization over all tokens",
    "add_k_proj": "a second stream of tokens with projections of its own",
}
"""Parts of an attention module that are not computed, and what they are."""


class UspAttnProcessor:
    """Attention from this rank's tokens to the whole sequence.

    For diffusers' ``Attention``, and modules of one's own with its projections (``to_q``, ``to_k``,
    ``to_v``, ``to_out``, ``heads``, perhaps ``norm_q`` and ``norm_k``), such as those that inherit
    ``AttentionModuleMixin``. Attention is causal if the module's ``is_causal`` is.

    In cross attention (``encoder_hidden_states``), every rank holds all keys, and nothing is sent;
    with ``kv_shards``, they are split over the ranks, too. There are no documents in it.

    Args:
        sequence: The sequence of ``hidden_states``.
        kv_shards: Ownership of ``encoder_hidden_states``; None if every rank holds all of them.
    """

    def __init__(self, sequence: ShardedSequence, kv_shards: TokenShards | None = None) -> None:
        self.sequence = sequence
        self.kv_shards = kv_shards

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        image_rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Attend, and project the output.

        Args:
            attn: The attention module.
            hidden_states: ``[B, s, D]``, this rank's tokens.
            encoder_hidden_states: ``[B, t, D]``, the keys of cross attention.
            attention_mask: None.
            image_rotary_emb: Cosines and sines of this rank's tokens, ``[s, H]`` each, for
                ``apply_rotary_emb``; None for no rotation, and in cross attention.

        Returns:
            ``[B, s, D]``.

        Raises:
            TensorError: There is a mask, or ``hidden_states`` are not tokens, or there are
                documents in cross attention.
            ModelError: The module has a part that is not computed.
        """
        _check(attn, hidden_states, attention_mask)
        if encoder_hidden_states is None:
            out_BsNH = self._self_attention(attn, hidden_states, image_rotary_emb)
        else:
            out_BsNH = self._cross_attention(attn, hidden_states, encoder_hidden_states)
        out = out_BsNH.flatten(2)
        for layer in getattr(attn, "to_out", None) or ():
            out = layer(out)
        if getattr(attn, "residual_connection", False):
            out = out + hidden_states
        return out / float(getattr(attn, "rescale_output_factor", 1.0))

    def _self_attention(
        self, attn: Any, tokens: torch.Tensor, rotation: tuple[torch.Tensor, torch.Tensor] | None
    ) -> torch.Tensor:
        """Attention to the whole sequence: ``[B, s, N, H]``."""
        q_BsNH, k_BsNH, v_BsNH = _projections(attn, tokens, tokens)
        if rotation is not None:
            q_BsNH = apply_rotary_emb(q_BsNH, rotation, sequence_dim=1)
            k_BsNH = apply_rotary_emb(k_BsNH, rotation, sequence_dim=1)
        return self.sequence.attend(
            q_BsNH,
            k_BsNH,
            v_BsNH,
            causal=getattr(attn, "is_causal", False),
            scale=getattr(attn, "scale", None),
        )

    def _cross_attention(self, attn: Any, tokens: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """Attention to other keys: ``[B, s, N, H]``."""
        if getattr(attn, "norm_cross", None) is not None:
            keys = attn.norm_encoder_hidden_states(keys)
        sequence, kv_shards = self.sequence, self.kv_shards
        if sequence.document_lengths is not None:
            raise TensorError(
                f"document_lengths={sequence.document_lengths} in cross attention: which keys a "
                "document would see is not known; give these modules a processor of a sequence "
                "without document_lengths, or attend to each document's keys by itself"
            )
        if kv_shards is None:  # all keys are here: this rank's tokens attend to them alone
            one_rank = ParallelDims()
            shards = TokenShards.even(tokens.shape[1], one_rank)
            sequence = replace(sequence, mesh=None, shards=shards)
            kv_shards = TokenShards.even(keys.shape[1], one_rank)
        return sequence.attend(
            *_projections(attn, tokens, keys),
            causal=False,
            scale=getattr(attn, "scale", None),
            kv_shards=kv_shards,
        )


def _check(attn: Any, tokens: torch.Tensor, mask: torch.Tensor | None) -> None:
    """Refuse what is not computed."""
    if mask is not None:
        raise TensorError(
            f"attention_mask of shape {tuple(mask.shape)}: there are no masks across ranks; cut "
            "padding off before the model"
        )
    if tokens.ndim != 3:
        raise TensorError(
            f"hidden_states of shape {tuple(tokens.shape)} must be [batch, tokens, width]: make "
            "tokens of pictures before they are split"
        )
    for name, feature in _UNSUPPORTED.items():
        part = getattr(attn, name, None)
        if part is not None and not (name == "norm_cross" and isinstance(part, nn.LayerNorm)):
            raise ModelError(
                f"{name} in {type(attn).__name__}: UspAttnProcessor does not compute {feature}; "
                "call longtake.parallel.usp_attention in a processor of your own"
            )


def _projections(
    attn: Any, tokens: torch.Tensor, keys: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """q ``[B, s, N, H]``, k and v ``[B, t, M, H]``; q and k normalized."""
    q, k, v = attn.to_q(tokens), attn.to_k(keys), attn.to_v(keys)
    head_size = q.shape[-1] // attn.heads
    return (
        _heads(q, head_size, getattr(attn, "norm_q", None)),
        _heads(k, head_size, getattr(attn, "norm_k", None)),
        _heads(v, head_size, None),
    )


def _heads(tokens: torch.Tensor, head_size: int, norm: Any) -> torch.Tensor:
    """``[B, t, N * H]`` to ``[B, t, N, H]``, normalized over each head, or over all of them."""
    size = getattr(norm, "normalized_shape", None) or getattr(norm, "dim", None)
    over_all = isinstance(size, tuple) and size[-1] == tokens.shape[-1]
    if norm is not None and over_all:
        tokens = norm(tokens)
    heads = tokens.view(*tokens.shape[:-1], -1, head_size)
    if norm is not None and not over_all:
        heads = norm(heads)
    return heads
