"""HunyuanVideo's rotary position embedding of video tokens.

Legend: S tokens of the whole video, H head size.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from longtake.pipelines.spec import LatentGrid

LONGEST_FRAMES = 192
"""Longer videos would repeat themselves: the slowest of their temporal frequencies turn round."""

_PART_OF_A_TURN = 0.9


def video_rotation(
    rope: Any, grid: LatentGrid, num_frames: int, device: torch.device
) -> torch.Tensor:
    """By how much each token of a video turns: ``[S, H / 2]``, complex, whole on every rank.

    Above 192 frames it is RIFLEx, as in tencent's HunyuanVideo-I2V: one temporal frequency is
    lowered, so that it makes nine tenths of a turn over all of the video.

    Args:
        rope: diffusers' module.
        num_frames: of the video, not of its latents.
    """
    cos, sin = rope(torch.empty(1, device=device).expand(grid.shape))
    rotation = torch.complex(cos[:, ::2].contiguous(), sin[:, ::2].contiguous())
    if num_frames > LONGEST_FRAMES:
        frames, rows, columns = grid.cells
        intrinsic = min(max(2 + (num_frames + 3) // 100, 4), 8, rope.rope_dim[0] // 2)
        frequency = _PART_OF_A_TURN * 2 * math.pi / frames
        angles = torch.arange(frames, device=device, dtype=torch.float32) * frequency
        turned = torch.polar(torch.ones_like(angles), angles)
        rotation[:, intrinsic - 1] = turned.repeat_interleave(rows * columns)
    return rotation
