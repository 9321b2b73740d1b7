"""The expert that rests in host memory."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from longtake.errors import ModelError
from longtake.parallel import ParallelDims
from longtake.pipelines.layout import VideoLayout
from longtake.pipelines.models.wan.transformer.denoiser import WanDenoiser
from longtake.pipelines.models.wan.transformer.placement import ExpertSwap, both_fit
from tests import tiny_wan
from tests.wan_denoising import BOUNDARY, SIZES, Case, denoiser, new_denoiser, prepare

CPU = torch.device("cpu")
GIB = 2**30
A14B_BYTES = 2 * 14_288_491_584 * 2


def swapped(model: WanDenoiser) -> ExpertSwap:
    """Let the low-noise expert rest first."""
    model.swap = ExpertSwap(model.experts["transformer_2"], model.experts["transformer"], CPU)
    return model.swap


def storages(module: torch.nn.Module) -> set[int]:
    return {each.untyped_storage().data_ptr() for each in module.parameters()}


@pytest.mark.parametrize(
    ("memory_gib", "fit"), [(24, False), (80, False), (96, False), (141, True), (192, True)]
)
def test_both_experts_stay_if_they_take_half_of_the_memory(
    monkeypatch: pytest.MonkeyPatch, memory_gib: int, fit: bool
) -> None:
    class Properties:
        total_memory = memory_gib * GIB

    def properties(device: Any) -> Properties:
        return Properties()

    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    assert both_fit(A14B_BYTES, torch.device("cuda", 0)) is fit
    assert both_fit(A14B_BYTES, CPU)


def test_videos_are_the_same_to_the_bit() -> None:
    """Two videos: at the boundary of each, and at the start of the second, the experts change
    places."""
    model, whole = new_denoiser("wan22-i2v"), denoiser("wan22-i2v")
    swapped(model)
    case = Case("wan22-i2v", SIZES["18 tokens"])
    layout = VideoLayout.of(case.grid, ParallelDims(), None)
    tokens = layout.split(case.latents())
    for _ in range(2):
        inputs, expected = (prepare(each, case, layout) for each in (model, whole))
        for timestep in (980, BOUNDARY, 700, 100):
            step = Case(case.kind, case.size, timestep).step
            with torch.no_grad():
                found = model(tokens, step, inputs)
                assert torch.equal(found, whole(tokens, step, expected))


def test_experts_change_places_in_one_host_buffer() -> None:
    model = new_denoiser("wan22-t2v")
    high, low = model.experts["transformer"], model.experts["transformer_2"]
    before = {name: weights.clone() for name, weights in model.named_parameters()}
    swap = swapped(model)
    (host,) = storages(low)
    assert host not in storages(high)
    swap.bring_to_device(high)
    assert storages(low) == {host}
    for running, resting in ((low, high), (high, low), (low, high)):
        swap.bring_to_device(running)
        assert storages(resting) == {host}
        assert host not in storages(running)
        for name, weights in model.named_parameters():
            assert torch.equal(weights, before[name])


def test_dtypes_stay() -> None:
    model = new_denoiser("wan22-t2v").to(torch.bfloat16)
    for name in model.experts:
        model.expert(name).transformer.scale_shift_table.data = torch.randn(1, 2, 48)
    dtypes = [weights.dtype for weights in model.parameters()]
    assert len(set(dtypes)) == 2
    swap = swapped(model)
    swap.bring_to_device(model.experts["transformer_2"])
    assert [weights.dtype for weights in model.parameters()] == dtypes


def test_experts_of_different_sizes_are_refused() -> None:
    models = {
        "transformer": tiny_wan.transformer(),
        "transformer_2": tiny_wan.transformer(num_layers=1),
    }
    model = WanDenoiser(models, BOUNDARY)
    with pytest.raises(ModelError, match=re.escape("transformer and transformer_2 differ in size")):
        swapped(model)
