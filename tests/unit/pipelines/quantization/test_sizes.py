"""The planned bytes of weights in fewer bits are those of the modules, at full size."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from diffusers import HunyuanVideoTransformer3DModel, WanTransformer3DModel
from torch import nn

from longtake.configs.fields.weights import StorageDtype
from longtake.pipelines import registry
from longtake.pipelines.costs import ModelCosts, Work
from longtake.pipelines.counting.work import WorkCounter
from longtake.pipelines.family import Denoiser
from longtake.pipelines.models.hunyuan_video.transformer.denoiser import HunyuanVideoDenoiser
from longtake.pipelines.models.wan.tensors import FLOAT32_WEIGHTS
from longtake.pipelines.models.wan.transformer.denoiser import WanDenoiser
from longtake.pipelines.operations import LiveBytes, observing
from longtake.pipelines.quantization.linear import stored_dtypes, stored_linears
from longtake.pipelines.quantization.replacement import store_in_fewer_bits
from tests.unit.pipelines.counting.planned import checkpoint_of, counted

GIB = 2**30
STORAGES = pytest.mark.parametrize("storage", get_args(StorageDtype))
PRESETS = ["hunyuan-video", "wan2.2-t2v-a14b", "wan2.1-i2v-14b-480p", "wan2.2-ti2v-5b"]


def costs_of(preset: str) -> ModelCosts:
    """A preset's cost model."""
    costs = registry.inspect(checkpoint_of(preset), weights=False).costs
    assert costs is not None
    return costs


def denoiser_of(preset: str) -> Denoiser[Any]:
    """A preset's denoiser on the meta device, in bfloat16."""
    checkpoint = checkpoint_of(preset)
    wan = preset.startswith("wan")
    kind = WanTransformer3DModel if wan else HunyuanVideoTransformer3DModel
    names = [name for name in checkpoint.components if name.startswith("transformer")]
    with torch.device("meta"):
        models = {name: kind.from_config(checkpoint.config(name)) for name in names}
    denoiser = WanDenoiser(models, 0.9) if wan else HunyuanVideoDenoiser(models["transformer"])
    for name, parameter in denoiser.named_parameters():
        kept = wan and FLOAT32_WEIGHTS.search(name)
        parameter.data = parameter.data.to(torch.float32 if kept else torch.bfloat16)
    return denoiser


def held(module: nn.Module) -> int:
    """Bytes of a module's parameters."""
    return sum(each.nbytes for each in module.parameters())


@STORAGES
@pytest.mark.parametrize("preset", PRESETS)
def test_bytes_of_the_transformer_and_of_a_block(preset: str, storage: StorageDtype) -> None:
    denoiser, costs = denoiser_of(preset), costs_of(preset)
    blocks = [block for chain in denoiser.chains for block in chain]
    assert costs.transformer_bytes(2) == held(denoiser)
    assert costs.block_bytes(2) == pytest.approx(max(map(held, blocks)), rel=1e-3)
    store_in_fewer_bits(blocks, storage)
    assert costs.transformer_bytes(2, storage=storage) == held(denoiser)
    assert costs.block_bytes(2, storage) == pytest.approx(max(map(held, blocks)), rel=1e-3)
    for ranks in (2, 3):  # rows of a shard, padded
        expected = sum(
            -(-len(each) // ranks) * each[0].numel() * each.element_size()
            for each in denoiser.parameters()
        )
        assert costs.transformer_bytes(2, ranks, storage) == expected
    assert stored_dtypes(denoiser)


@pytest.mark.parametrize(
    ("preset", "storage", "gib"),
    [
        ("hunyuan-video", None, 23.9),
        ("hunyuan-video", "float8", 12.3),
        ("hunyuan-video", "nf4", 7.2),
        ("wan2.2-ti2v-5b", "float8", 4.8),
    ],
)
def test_sizes_of_released_models(preset: str, storage: StorageDtype | None, gib: float) -> None:
    costs = costs_of(preset)
    assert costs.transformer_bytes(2, storage=storage) / GIB == pytest.approx(gib, abs=0.06)


@STORAGES
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_memory_and_traffic_of_decoding(storage: StorageDtype, dtype: torch.dtype) -> None:
    """Counted in the forward of every linear layer of a model's blocks, for no tokens."""
    denoiser, costs = denoiser_of("hunyuan-video"), costs_of("hunyuan-video")
    blocks = denoiser.chains[0]
    store_in_fewer_bits(blocks, storage)
    linears = stored_linears(denoiser).values()
    for linear in linears:
        linear.bias.data = linear.bias.data.to(dtype)
    memory, counter = LiveBytes(), WorkCounter()
    with torch.device("meta"), torch.no_grad(), observing(memory, counter):
        for linear in linears:
            linear(torch.empty(0, linear.in_features, dtype=dtype))
    expected = costs.weight_decoding(dtype.itemsize, storage)
    decodes = counter.launches - len(linears)  # the products are counted elsewhere
    assert decodes == pytest.approx(expected.launches, abs=6)  # nf4's table, once
    assert counter.memory_bytes == pytest.approx(expected.memory_bytes, rel=0.01)
    assert memory.peak == pytest.approx(costs.decoded_bytes(dtype.itemsize, storage), rel=0.02)


def test_nothing_is_decoded_without_storage() -> None:
    costs = costs_of("hunyuan-video")
    assert (costs.decoded_bytes(2, None), costs.weight_decoding(2, None)) == (0, Work())
    assert costs.decoded_bytes(2, "float8") == 2 * 6 * 3072**2  # the largest modulation's


@STORAGES
def test_counted_costs_have_the_same_bytes(storage: StorageDtype) -> None:
    """A family without arithmetic of its own."""
    own, found = costs_of("demo"), counted("demo")
    for ranks in (1, 3):
        assert found.transformer_bytes(2, ranks, storage) == own.transformer_bytes(
            2, ranks, storage
        )
    assert found.block_bytes(4, storage) == own.block_bytes(4, storage)
    assert found.decoded_bytes(2, storage) == own.decoded_bytes(2, storage)
