"""HunyuanVideo's attention over a sequence that is split across ranks.

Legend: B videos, n this rank's tokens (video, then text), N heads, H head size, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh

from longtake.parallel import TokenShards, usp_attention


@dataclass(frozen=True)
class SequencePlace:
    """This rank's stretch of a sequence, and how it attends to the rest.

    Blocks hand it to their attention in the place of diffusers' rotary embedding.

    Attributes:
        shards: who owns which tokens of the whole sequence.
        mesh: the grid of ranks.
        rotation: ``[n, H / 2]``, complex: by how much each own token turns; 1 for text.
        kernel: name of the local kernel.
    """

    shards: TokenShards
    mesh: DeviceMesh | None
    rotation: torch.Tensor
    kernel: str

    @property
    def head_size(self) -> int:
        """H."""
        return 2 * self.rotation.shape[-1]


class UspAttnProcessor:
    """An attention processor of diffusers that computes exact attention across ranks.

    Serves HunyuanVideo's double-stream blocks, where video and text have projections of their own,
    and its single-stream blocks, where the caller may cut the sequence anywhere. It has no state.
    """

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        attention_mask: None,
        image_rotary_emb: SequencePlace,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Attend from this rank's tokens to the whole sequence.

        Args:
            attn: diffusers' Attention module.
            hidden_states: ``[B, v, D]``.
            encoder_hidden_states: ``[B, n - v, D]``.
            attention_mask: there is none; padding was cut off.
            image_rotary_emb: the place of the n tokens.

        Returns:
            Both again, in the same shapes.
        """
        place, num_first = image_rotary_emb, hidden_states.shape[1]
        two_streams = attn.add_q_proj is not None
        if two_streams:
            q, k, v = _joint_projections(
                attn, hidden_states, encoder_hidden_states, place.head_size
            )
        else:
            tokens = torch.cat([hidden_states, encoder_hidden_states], dim=1)
            q, k, v = _projections(attn, tokens, place.head_size)
        out = usp_attention(
            rotate_(q, place.rotation),
            rotate_(k, place.rotation),
            v,
            mesh=place.mesh,
            shards=place.shards,
            kernel=place.kernel,
        )
        first, last = out.flatten(2).tensor_split((num_first,), dim=1)
        if two_streams:
            return attn.to_out[1](attn.to_out[0](first)), attn.to_add_out(last)
        return first, last


def rotate_(x: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
    """Turn each pair of neighbouring values of ``[B, n, N, H]`` by ``rotation``, in float32.

    In place where ``x`` is float32 already.
    """
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    pairs.mul_(rotation[:, None])
    return torch.view_as_real(pairs).flatten(-2).to(x.dtype)


def _projections(attn: Any, tokens: torch.Tensor, head_size: int) -> list[torch.Tensor]:
    """q, k and v of one stream, normalized: ``[B, n, N, H]`` each."""
    heads = (-1, head_size)
    q, k, v = (
        project(tokens).unflatten(-1, heads) for project in (attn.to_q, attn.to_k, attn.to_v)
    )
    return [_normalized(attn.norm_q, q), _normalized(attn.norm_k, k), v]


def _joint_projections(
    attn: Any, video: torch.Tensor, text: torch.Tensor, head_size: int
) -> list[torch.Tensor]:
    """q, k and v of both streams, one after the other."""
    heads = (-1, head_size)
    q, k, v = (
        project(text).unflatten(-1, heads)
        for project in (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
    )
    of_text = [_normalized(attn.norm_added_q, q), _normalized(attn.norm_added_k, k), v]
    of_video = _projections(attn, video, head_size)
    return [torch.cat(pair, dim=1) for pair in zip(of_video, of_text, strict=True)]


def _normalized(norm: Any, x: torch.Tensor) -> torch.Tensor:
    normalized: torch.Tensor = x if norm is None else norm(x)
    return normalized
