"""Wan's rotary embedding against diffusers' tables."""

from __future__ import annotations

import pytest
import torch

from longtake.pipelines.models.wan.transformer.rope import rope_buffers, video_rotation
from longtake.pipelines.spec import LatentGrid
from tests import tiny_wan

CPU = torch.device("cpu")


@pytest.mark.parametrize("head_size", [16, 24, 128])
@pytest.mark.parametrize("size", [(1, 2, 2), (5, 6, 14), (21, 60, 104), (3, 2, 2048)])
def test_rotation_equals_diffusers_to_the_bit(head_size: int, size: tuple[int, int, int]) -> None:
    rope = tiny_wan.transformer(attention_head_dim=head_size, num_layers=0).rope
    grid = LatentGrid((1, 4, *size), (1, 2, 2))
    cos, sin = rope(torch.empty(grid.shape))
    found = video_rotation(grid, head_size, CPU)
    assert found.dtype == torch.complex64
    assert torch.equal(found.real, cos[0, :, 0, 0::2])
    assert torch.equal(found.imag, sin[0, :, 0, 1::2])


def test_axis_longer_than_diffusers_table() -> None:
    grid = LatentGrid((1, 4, 1, 2, 2 * 1500), (1, 2, 2))
    found = video_rotation(grid, 128, CPU)
    assert found.shape == (1500, 64)
    torch.testing.assert_close(found.abs(), torch.ones(1500, 64), rtol=0, atol=1e-6)


def test_buffers_of_a_module_on_meta() -> None:
    expected = dict(tiny_wan.transformer(num_layers=0).named_buffers())
    with torch.device("meta"):
        built = tiny_wan.transformer(num_layers=0)
        found = rope_buffers(built.rope)
    assert set(found) == set(expected) == {"rope.freqs_cos", "rope.freqs_sin"}
    for name, buffer in found.items():
        assert torch.equal(buffer, expected[name])
