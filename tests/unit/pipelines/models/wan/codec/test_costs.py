"""The autoencoder's costs, against what torch counts on tensors without values."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from diffusers import AutoencoderKLWan
from torch._subclasses.fake_tensor import FakeTensorMode

from longtake.configs.request import ResolvedDecode
from longtake.pipelines.codec.tiles import TileCoder
from longtake.pipelines.costs import Work
from longtake.pipelines.counting.work import WorkCounter
from longtake.pipelines.models.wan.codec.autoencoder import WanDecoder, WanEncoder
from longtake.pipelines.models.wan.codec.config import VaeConfig
from longtake.pipelines.models.wan.codec.costs import AutoencoderCosts
from longtake.pipelines.operations import LiveBytes, observing
from tests.wan_coding import ARCHITECTURES

LATENTS = [(1, 8, 8), (2, 32, 32), (3, 16, 9)]
"""Frames, rows and columns."""

WHOLE = ResolvedDecode(decode="whole", fps=8, height=16, width=16, num_frames=1)

CASES = [
    *product(("released wan2.1", "released wan2.2"), (torch.float32, torch.bfloat16)),
    ("odd widths", torch.float32),
    ("two halvings", torch.bfloat16),
]
"""Architectures and dtypes."""


def coders(
    shapes: FakeTensorMode, name: str, dtype: torch.dtype
) -> tuple[AutoencoderCosts, WanDecoder, WanEncoder]:
    """The costs of an architecture, and its coders without values."""
    settings, before = ARCHITECTURES[name], torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with shapes:
            vae = AutoencoderKLWan(**settings).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(before)
    costs = AutoencoderCosts(VaeConfig.model_validate(settings))
    return costs, WanDecoder(vae, WHOLE), WanEncoder(vae, WHOLE)


def counted(shapes: FakeTensorMode, coder: TileCoder, shape: tuple[int, ...]) -> tuple[Work, int]:
    """Work and peak memory of one tile, which includes the input."""
    counter, memory = WorkCounter(), LiveBytes()
    with shapes, observing(counter, memory):
        coder.run(torch.empty(1, *shape))
    return counter.work, memory.peak


def flops(work: Work) -> float:
    return work.linear_flops + work.attention_flops + work.convolution_flops


@pytest.mark.parametrize(("name", "dtype"), CASES, ids=str)
def test_decoding(shapes: FakeTensorMode, name: str, dtype: torch.dtype) -> None:
    costs, decoder, _ = coders(shapes, name, dtype)
    for latents in LATENTS:
        found, peak = counted(shapes, decoder, (costs.config.z_dim, *latents))
        check_work(costs.decoding(latents, dtype.itemsize), found, name)
        over = costs.peak_bytes(latents, dtype.itemsize) / peak
        assert 0.98 < over < (1.05 if latents[0] > 2 else 1.2), latents


@pytest.mark.parametrize(("name", "dtype"), CASES, ids=str)
def test_encoding(shapes: FakeTensorMode, name: str, dtype: torch.dtype) -> None:
    costs, _, encoder = coders(shapes, name, dtype)
    in_space = costs.config.scale_factor_spatial
    for frames, rows, columns in LATENTS:
        pixels = (3, 4 * frames - 3, rows * in_space, columns * in_space)
        found, peak = counted(shapes, encoder, pixels)
        latents = frames, rows, columns
        check_work(costs.encoding(latents, dtype.itemsize), found, name)
        over = costs.encoding_peak_bytes(latents, dtype.itemsize) / peak
        exact = frames > 2 and name.startswith("released")
        assert 0.95 < over < (1.05 if exact else 1.3), latents


def check_work(work: Work, found: Work, name: str) -> None:
    """Operations are exact. The copies of pixels, which are not counted, weigh in small models."""
    assert flops(work) == pytest.approx(flops(found), rel=1e-9)
    assert work.attention_flops == found.attention_flops
    tolerance = 0.1 if name.startswith("released") else 0.2
    assert work.memory_bytes == pytest.approx(found.memory_bytes, rel=tolerance)
    assert work.launches == pytest.approx(found.launches, rel=0.2)
