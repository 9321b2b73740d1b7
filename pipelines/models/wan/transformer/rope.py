"""Wan's rotary position embedding of video tokens.

Legend: B videos, S video tokens, n local tokens, N heads, H head size.
"""

from __future__ import annotations

from typing import Any

import torch

from longtake.pipelines.spec import LatentGrid

_THETA = 10_000.0
"""Base of the frequencies, fixed in diffusers."""


def video_rotation(grid: LatentGrid, head_size: int, device: torch.device) -> torch.Tensor:
    """Return the rotary embedding of a whole video on every rank: ``[S, H / 2]``, complex64.

    It is computed in float64, as diffusers' tables are, but not from them: the dtype of the weights
    does not round it, and no axis is limited to the length of a table.
    """
    spatial = 2 * (head_size // 6)
    axis_sizes = (head_size - 2 * spatial, spatial, spatial)
    lengths = grid.tokens_shape
    parts = []
    for dim, (length, size) in enumerate(zip(lengths, axis_sizes, strict=True)):
        shape = [1, 1, 1, size // 2]
        shape[dim] = length
        along_axis = _axis_rotation(length, size).to(device)
        parts.append(along_axis.view(shape).expand(*lengths, -1))
    return torch.cat(parts, dim=-1).flatten(0, 2)


def rope_buffers(rope: Any) -> dict[str, torch.Tensor]:
    """The tables of diffusers' rotary embedding, by their names in the transformer.

    They are in no checkpoint. A module that was built on the ``meta`` device has none, so they are
    those of a new module.

    Args:
        rope: The transformer's ``WanRotaryPosEmbed``, on any device.
    """
    with torch.device("cpu"):
        built = type(rope)(rope.attention_head_dim, rope.patch_size, rope.max_seq_len)
    return {f"rope.{name}": buffer for name, buffer in built.named_buffers()}


def _axis_rotation(length: int, size: int) -> torch.Tensor:
    """Rotation along one axis, ``[length, size / 2]``, complex64."""
    exponents = torch.arange(0, size, 2, dtype=torch.float64) / size
    positions = torch.arange(length, dtype=torch.float64)
    angles = torch.outer(positions, 1.0 / _THETA**exponents)
    return torch.complex(angles.cos().float(), angles.sin().float())
