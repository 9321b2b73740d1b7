"""Wan's cost model against operations, bytes and parameters that torch counts.

Nothing is computed: the models run on fake tensors.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import CLIPVisionConfig, CLIPVisionModel, UMT5Config, UMT5EncoderModel

from longtake.parallel import ParallelDims
from longtake.parallel.heads import HeadShards
from longtake.pipelines.costs import ModelCosts, Work
from longtake.pipelines.layout import VideoLayout
from longtake.pipelines.loading.weights import all_gather_bytes
from longtake.pipelines.models.wan.codec.config import VaeConfig
from longtake.pipelines.models.wan.configs import TransformerConfig
from longtake.pipelines.models.wan.costs import WanCosts
from longtake.pipelines.models.wan.tensors import FLOAT32_WEIGHTS
from longtake.pipelines.models.wan.transformer.denoiser import WanDenoiser
from longtake.pipelines.runtime.stepper import Step
from longtake.pipelines.spec import LatentGrid
from longtake.pipelines.text_encoders.configs import ClipVisionConfig, Umt5Config
from longtake.pipelines.text_encoders.layers import streaming_parameters
from tests.layouts import layout_name
from tests.rendering import request
from tests.unit.pipelines.models.fake_ranks import one_rank_of
from tests.unit.pipelines.models.test_costs import Counts, default_dtype
from tests.unit.pipelines.models.wan.architectures import ARCHITECTURES, PARAMETERS

DTYPES = [torch.float32, torch.bfloat16]
KEYS = 257
"""Image keys of one picture in the released models."""

BENCHMARK: dict[str, Any] = dict(
    num_attention_heads=8, attention_head_dim=64, num_layers=2, ffn_dim=2048, text_dim=64
)
SMALL: dict[str, dict[str, Any]] = {
    "text": BENCHMARK,
    "wide": {**BENCHMARK, "ffn_dim": 4096, "cross_attn_norm": False},
    "picture": {**BENCHMARK, "in_channels": 36},
    "image-keys": {**BENCHMARK, "in_channels": 36, "image_dim": 64, "added_kv_proj_dim": 512},
    "first-frame": {**BENCHMARK, "in_channels": 48, "out_channels": 48},
}
RELEASED = ["2.1-t2v-1.3b", "2.1-t2v-14b", "2.1-i2v-14b", "2.1-flf2v-14b", "2.2-ti2v-5b"]


def make_costs(settings: dict[str, Any], name: str = "") -> WanCosts:
    """The cost model of a transformer's configuration."""
    width = settings.get("image_dim") or 1280
    vision = ClipVisionConfig(hidden_size=width, num_attention_heads=4, patch_size=14)
    return WanCosts(
        transformer=TransformerConfig.model_validate(settings),
        vae=VaeConfig(),
        text_encoder=Umt5Config(),
        image_encoder=vision if "image_dim" in settings else None,
        num_experts=2 if "a14b" in name else 1,
        per_token_timesteps=name in ("first-frame", "2.2-ti2v-5b"),
    )


# Parameters.


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_transformer_parameters(name: str) -> None:
    with torch.device("meta"):
        model = WanTransformer3DModel(**ARCHITECTURES[name])
    costs = make_costs(ARCHITECTURES[name], name)
    experts = costs.num_experts
    found = Counter(tuple(weights.shape) for weights in model.parameters())
    assert Counter(costs.transformer_shapes) == Counter(
        {shape: experts * number for shape, number in found.items()}
    )
    assert costs.block_parameters == _parameters(model.blocks[0])
    blocks = len(model.blocks) * costs.block_parameters
    assert costs.non_block_parameters == _parameters(model) - blocks


@pytest.mark.parametrize("ranks", [1, 3, 8])
@pytest.mark.parametrize("name", ["2.1-i2v-14b", "2.2-t2v-a14b", "odd"])
def test_bytes_of_parameters(name: str, ranks: int) -> None:
    """Some parameters stay float32, and tables have one row, of which every rank has a copy."""
    with torch.device("meta"):
        model = WanTransformer3DModel(**ARCHITECTURES[name]).bfloat16()
    for key, weights in model.named_parameters():
        if FLOAT32_WEIGHTS.search(key):
            weights.data = weights.data.float()
    shards = [
        math.ceil(each.shape[0] / ranks) * each[0].numel() * each.element_size()
        for each in model.parameters()
    ]
    costs = make_costs(ARCHITECTURES[name], name)
    assert costs.transformer_bytes(2, ranks) == costs.num_experts * sum(shards)
    if ranks == 1:
        assert costs.transformer_bytes(4) == costs.num_experts * 4 * _parameters(model)


@pytest.mark.parametrize("name", ["odd", "2.2-t2v-a14b"])
def test_bytes_to_gather_sharded_weights(name: str) -> None:
    """A pass gathers one expert: rows in the dtype of each parameter, padded over three ranks."""
    with one_rank_of(3):
        with torch.device("meta"):
            model = WanTransformer3DModel(**{**ARCHITECTURES[name], "num_layers": 2}).bfloat16()
        for key, weights in model.requires_grad_(False).named_parameters():
            if FLOAT32_WEIGHTS.search(key):
                weights.data = weights.data.float()
        mesh = init_device_mesh("cpu", (3,))
        for each in (*model.blocks, model):
            fully_shard(each, mesh=mesh)
        gathered = all_gather_bytes(model)
    costs = make_costs({**ARCHITECTURES[name], "num_layers": 2}, name)
    assert costs.transformer_bytes(2, 3) // costs.num_experts * 2 == gathered


def test_released_sizes() -> None:
    for name, parameters in PARAMETERS.items():
        costs = make_costs(ARCHITECTURES[name], name)
        assert costs.transformer_parameters == pytest.approx(parameters, rel=5e-4)


def _parameters(model: torch.nn.Module) -> int:
    return sum(weights.numel() for weights in model.parameters())


# Work of one pass.


def make_denoiser(
    shapes: FakeTensorMode, settings: dict[str, Any], dtype: torch.dtype
) -> WanDenoiser:
    """A denoiser without weights."""
    with shapes, default_dtype(dtype):
        model = WanTransformer3DModel(**settings).requires_grad_(False)
    for key, weights in model.named_parameters():
        if FLOAT32_WEIGHTS.search(key):
            weights.data = weights.data.float()
    denoiser = WanDenoiser({"transformer": model.eval()})
    denoiser.chunk_feed_forwards()
    return denoiser


@contextmanager
def one_pass(
    shapes: FakeTensorMode,
    denoiser: WanDenoiser,
    costs: WanCosts,
    grid: LatentGrid,
    dims: ParallelDims,
) -> Iterator[tuple[Callable[[], torch.Tensor], int, int]]:
    """Rank 0's pass as a function, its number of tokens, and the bytes allocated before it."""
    config, dtype = costs.transformer, denoiser.expert("transformer").dtype
    with one_rank_of(dims.world_size):
        mesh = dims.build_mesh("cpu")
        layout = VideoLayout.of(grid, dims, mesh)
        own = layout.shards.counts[0]
        with shapes:
            streams = {"text": torch.empty(1, costs.text_keys, config.text_dim, dtype=dtype)}
            if costs.image_keys:
                assert config.image_dim is not None
                keys = torch.empty((1, costs.image_keys, config.image_dim), dtype=dtype)
                streams["image"] = keys
            inputs = denoiser.prepare(streams, layout, request(), _pictures(costs, grid))
            tokens = torch.empty(grid.shape[0], own, config.token_values)
            step = Step(0, torch.tensor(1000.0), 1000.0)
            denoiser(tokens, step, inputs)  # embeds the text and the pictures, once a video
            held = tokens.nbytes + inputs.attention.rotation.nbytes
            held += 0 if inputs.condition is None else inputs.condition.nbytes
            yield lambda: denoiser(tokens, step, inputs), own * grid.shape[0], held


def _pictures(costs: WanCosts, grid: LatentGrid) -> dict[str, torch.Tensor]:
    """Latents of pictures, in the model's own way."""
    config = costs.transformer
    beside = config.in_channels - config.latent_channels
    if beside:
        return {"condition": torch.empty(1, beside, *grid.shape[2:])}
    if costs.per_token_timesteps:
        return {"first_frame": torch.empty(1, config.latent_channels, 1, *grid.shape[3:])}
    return {}


def _grid(costs: WanCosts, frames: int = 9, side: int = 48) -> LatentGrid:
    channels = costs.transformer.latent_channels
    return LatentGrid((1, channels, frames, side, side), costs.transformer.patch_size)


@pytest.mark.parametrize("side", [48, 96])
@pytest.mark.parametrize(("name", "dtype"), [*product(SMALL, DTYPES)], ids=str)
def test_work_of_one_rank(shapes: FakeTensorMode, name: str, dtype: torch.dtype, side: int) -> None:
    """One chunk of tokens, and three."""
    costs = make_costs(SMALL[name], name)
    denoiser, grid = make_denoiser(shapes, SMALL[name], dtype), _grid(costs, side=side)
    with one_pass(shapes, denoiser, costs, grid, ParallelDims()) as (run, tokens, held):
        counts = Counts.of(run)
    work = costs.transformer_pass(tokens, costs.text_keys, dtype.itemsize)
    assert _flops(work) + _across_ranks(costs, tokens) == pytest.approx(counts.flops, rel=0.005)
    assert work.memory_bytes == pytest.approx(counts.memory_bytes, rel=0.1)
    assert 1 / 1.2 < work.launches / counts.launches < 1.2
    peak = costs.activation_bytes(tokens, dtype.itemsize, ulysses=False, ring=False, head_share=1.0)
    assert peak == pytest.approx(counts.peak_bytes + held, rel=0.1)


@pytest.mark.parametrize("name", RELEASED)
def test_work_of_a_released_model(shapes: FakeTensorMode, name: str) -> None:
    """Two blocks of full size, 81 frames of 720p; the 5B, 121 frames of 704p."""
    settings = {**ARCHITECTURES[name], "num_layers": 2}
    costs = make_costs(settings, name)
    size = (31, 44, 80) if name == "2.2-ti2v-5b" else (21, 90, 160)
    channels = costs.transformer.latent_channels
    grid = LatentGrid((1, channels, *size), costs.transformer.patch_size)
    denoiser = make_denoiser(shapes, settings, torch.bfloat16)
    with one_pass(shapes, denoiser, costs, grid, ParallelDims()) as (run, tokens, held):
        counts = Counts.of(run)
    work = costs.transformer_pass(tokens, costs.text_keys, 2)
    assert _flops(work) + _across_ranks(costs, tokens) == pytest.approx(counts.flops, rel=0.005)
    assert work.memory_bytes == pytest.approx(counts.memory_bytes, rel=0.1)
    peak = costs.activation_bytes(tokens, 2, ulysses=False, ring=False, head_share=1.0)
    assert peak == pytest.approx(counts.peak_bytes + held, rel=0.1)


def test_keys_are_computed_once_for_several_videos(shapes: FakeTensorMode) -> None:
    costs = make_costs(SMALL["image-keys"])
    grid = _grid(costs, frames=3, side=16)
    grid = replace(grid, shape=(4, *grid.shape[1:]))
    denoiser = make_denoiser(shapes, SMALL["image-keys"], torch.float32)
    with one_pass(shapes, denoiser, costs, grid, ParallelDims()) as (run, tokens, _):
        counts = Counts.of(run)
    found = _flops(costs.transformer_pass(tokens, costs.text_keys, 4))
    found += _across_ranks(costs, tokens) / 4
    assert found == pytest.approx(counts.flops, rel=0.005)


LAYOUTS = [
    ParallelDims(ring_degree=ring_degree, ulysses_degree=ulysses_degree)
    for ring_degree, ulysses_degree in [(1, 2), (1, 4), (1, 5), (2, 1), (4, 1), (2, 2), (2, 4)]
]


@pytest.mark.parametrize(("name", "dtype"), [*product(["text", "first-frame"], DTYPES)], ids=str)
def test_activation_bytes_with_exchanges(
    shapes: FakeTensorMode, name: str, dtype: torch.dtype
) -> None:
    """Eight heads: uneven over five ranks. Tokens are many times a chunk, so attention is the
    peak."""
    settings = {**SMALL[name], "ffn_dim": 512}
    costs, denoiser = make_costs(settings, name), make_denoiser(shapes, settings, dtype)
    for dims in LAYOUTS:
        with one_pass(shapes, denoiser, costs, _grid(costs, 33, 120), dims) as (run, tokens, held):
            peak = Counts.of(run).peak_bytes
        predicted = costs.activation_bytes(
            tokens,
            dtype.itemsize,
            ulysses=dims.ulysses_degree > 1,
            ring=dims.ring_degree > 1,
            head_share=_head_share(costs, dims),
        )
        assert predicted == pytest.approx(peak + held, rel=0.1), layout_name(dims)


def _head_share(costs: ModelCosts, dims: ParallelDims) -> float:
    num_heads = costs.attention.num_heads
    most = max(map(len, HeadShards.even(num_heads, num_heads, dims.ulysses_degree).query))
    return most * dims.ulysses_degree / num_heads


def _across_ranks(costs: ModelCosts, num_tokens: int) -> float:
    return 4 * num_tokens**2 * costs.attention.width * costs.attention.num_attentions


def _flops(work: Work) -> float:
    return work.linear_flops + work.attention_flops + work.convolution_flops


# Encoders.


def test_text_and_image_encoding(shapes: FakeTensorMode) -> None:
    """Encoders as wide as the released ones, but shallower."""
    umt5 = dict(vocab_size=1000, d_model=4096, d_kv=64, d_ff=10240, num_layers=2, num_heads=64)
    clip = dict(
        hidden_size=1280,
        intermediate_size=5120,
        num_hidden_layers=2,
        num_attention_heads=16,
        patch_size=14,
    )
    costs = replace(
        make_costs(ARCHITECTURES["2.1-i2v-14b"]),
        text_encoder=Umt5Config.model_validate(umt5),
        image_encoder=ClipVisionConfig.model_validate(clip),
    )
    with shapes:
        text = UMT5EncoderModel(UMT5Config(**umt5)).eval()
        vision = CLIPVisionModel(CLIPVisionConfig(**clip)).eval()
        prompt, picture = torch.ones(1, 512, dtype=torch.long), torch.empty(1, 3, 224, 224)
        found = Counts.of(lambda: text(prompt).last_hidden_state).flops
        found += Counts.of(lambda: vision(picture).last_hidden_state).flops
    assert _flops(costs.text_encoding(512, 2)) == pytest.approx(found, rel=0.05)
    assert costs.other_parameters["text_encoders"] == _parameters(text) + _parameters(vision)
    streamed = max(streaming_parameters(encoder) for encoder in (text, vision))
    assert costs.text_streaming_parameters == streamed
