"""HunyuanVideo's rotary position embedding of video tokens.

Legend: S video tokens, H head size.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from longtake.pipelines.spec import LatentGrid

MAX_FRAMES_WITHOUT_RIFLEX = 192
"""In longer videos the slow temporal frequencies wrap around, and the video repeats itself."""

_RIFLEX_PERIODS = 0.9


def video_rotation(
    rope: Any, grid: LatentGrid, num_frames: int, device: torch.device
) -> torch.Tensor:
    """Return the rotary embedding of a whole video on every rank: ``[S, H / 2]``, complex.

    Above 192 frames it applies RIFLEx, as in Tencent's HunyuanVideo-I2V: it lowers the intrinsic
    temporal frequency to nine tenths of a period over the whole video.

    Args:
        rope: diffusers' rotary embedding module.
        num_frames: Number of video frames (not latent frames).
    """
    cos, sin = rope(torch.empty(1, device=device).expand(grid.shape))
    rotation = torch.complex(cos[:, ::2].contiguous(), sin[:, ::2].contiguous())
    if num_frames > MAX_FRAMES_WITHOUT_RIFLEX:
        frames, rows, columns = grid.tokens_shape
        intrinsic = min(max(2 + (num_frames + 3) // 100, 4), 8, rope.rope_dim[0] // 2)
        frequency = _RIFLEX_PERIODS * 2 * math.pi / frames
        angles = torch.arange(frames, device=device, dtype=torch.float32) * frequency
        rotated = torch.polar(torch.ones_like(angles), angles)
        rotation[:, intrinsic - 1] = rotated.repeat_interleave(rows * columns)
    return rotation
