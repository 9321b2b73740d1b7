"""Wan's experts on a GPU: one rests in pinned host memory, and results stay the same."""

from __future__ import annotations

import pytest
import torch

from longtake.parallel import ParallelDims
from longtake.pipelines.layout import VideoLayout
from longtake.pipelines.models.wan.transformer.denoiser import WanDenoiser
from longtake.pipelines.models.wan.transformer.placement import ExpertSwap
from longtake.pipelines.runtime.stepper import Step
from tests import tiny_wan
from tests.wan_denoising import BOUNDARY, REQUEST, Case

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def wide_denoiser() -> WanDenoiser:
    """Two experts of 16 MiB each or more, so that one of them counts in the GPU's memory."""
    wide = {"num_attention_heads": 8, "attention_head_dim": 64, "ffn_dim": 2048}
    experts = {
        name: tiny_wan.transformer(seed, **wide)
        for seed, name in enumerate(("transformer", "transformer_2"))
    }
    return WanDenoiser(experts, BOUNDARY)


def test_experts_change_places_and_velocities_stay_the_same_to_the_bit() -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    whole, model = wide_denoiser().to(device), wide_denoiser()
    high, low = model.expert("transformer"), model.expert("transformer_2")
    bytes_of_one = sum(weights.nbytes for weights in high.parameters())
    assert bytes_of_one > 16 * 2**20
    model.swap = ExpertSwap(low, high, device)
    high.to(device)
    allocated = torch.cuda.memory_allocated(device)

    case = Case("wan22-t2v", (1, 5, 12, 12))
    layout = VideoLayout.of(case.grid, ParallelDims(), None)
    streams = {name: each.to(device) for name, each in case.streams().items()}
    tokens = layout.split(case.latents()).to(device)
    with torch.no_grad():
        for _ in range(2):
            passes = [each.prepare(streams, layout, REQUEST, {}) for each in (model, whole)]
            for timestep in (980, 700):
                step = Step(0, torch.tensor(timestep, device=device), float(timestep))
                found, expected = (
                    each(tokens, step, inputs)
                    for each, inputs in zip((model, whole), passes, strict=True)
                )
                assert torch.equal(found, expected)
                running, resting = (high, low) if timestep >= BOUNDARY else (low, high)
                assert all(weights.is_cuda for weights in running.parameters())
                assert all(weights.is_pinned() for weights in resting.parameters())
                del found, expected
            del passes
    assert torch.cuda.memory_allocated(device) < allocated + bytes_of_one / 2
