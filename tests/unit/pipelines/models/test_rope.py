"""Rotary embedding: as diffusers up to 192 frames, with RIFLEx above."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from longtake.pipelines.models.hunyuan_video.transformer.rope import video_rotation
from longtake.pipelines.spec import LatentGrid
from tests import tiny

CPU = torch.device("cpu")


def rope(axes: tuple[int, int, int]) -> torch.nn.Module:
    model = tiny.transformer(rope_axes_dim=axes, attention_head_dim=sum(axes))
    module: torch.nn.Module = model.rope
    return module


def reference_angles(axes: tuple[int, int, int], grid: LatentGrid, lowered: int | None) -> object:
    """Angles as in Tencent's HunyuanVideo-I2V, ``[S, H / 2]``; ``lowered`` is its k."""
    parts = []
    indices = np.meshgrid(*map(np.arange, grid.tokens_shape), indexing="ij")
    positions = np.stack(indices, -1).reshape(-1, 3)
    for axis, size in enumerate(axes):
        frequencies = 1 / 256 ** (np.arange(0, size, 2) / size)
        if axis == 0 and lowered is not None:
            frequencies[lowered - 1] = 0.9 * 2 * math.pi / grid.tokens_shape[0]
        parts.append(positions[:, axis : axis + 1] * frequencies)
    return np.concatenate(parts, axis=1)


@pytest.mark.parametrize(
    ("num_frames", "lowered"),
    [
        (129, None),
        (189, None),
        (192, None),
        (193, 4),  # 2 + 196 // 100 is 3; the minimum is 4
        (197, 4),
        (297, 5),
        (397, 6),
        (501, 7),
        (597, 8),
        (1201, 8),
    ],
)
def test_released_axes(num_frames: int, lowered: int | None) -> None:
    axes = (16, 56, 56)
    grid = LatentGrid((1, 4, (num_frames + 3) // 4, 4, 6), (1, 2, 2))
    found = video_rotation(rope(axes), grid, num_frames, CPU)
    expected = torch.from_numpy(np.exp(1j * np.asarray(reference_angles(axes, grid, lowered))))
    assert found.dtype == torch.complex64
    torch.testing.assert_close(found, expected.to(torch.complex64), rtol=0, atol=2e-5)


def test_riflex_changes_one_frequency() -> None:
    """It makes nine tenths of a turn; all others, and height and width, are unchanged."""
    grid = LatentGrid((1, 4, 76, 4, 6), (1, 2, 2))
    module = rope((16, 56, 56))
    plain, longer = (video_rotation(module, grid, frames, CPU) for frames in (192, 301))
    changed = (plain != longer).any(0).nonzero().flatten().tolist()
    assert changed == [4]
    turned = torch.angle(longer[-1, 4] / longer[0, 4])
    expected = 0.9 * 2 * math.pi * 75 / 76 - 2 * math.pi
    torch.testing.assert_close(turned, torch.tensor(expected), rtol=0, atol=1e-4)


def test_riflex_with_few_frequencies() -> None:
    """With fewer than k frequencies, the last one is lowered."""
    grid = LatentGrid((1, 4, 50, 2, 2), (1, 2, 2))
    module = rope((4, 6, 6))
    plain, longer = (video_rotation(module, grid, frames, CPU) for frames in (192, 197))
    assert (plain != longer).any(0).nonzero().flatten().tolist() == [1]
