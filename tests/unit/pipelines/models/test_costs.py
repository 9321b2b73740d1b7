"""The cost model against operations, bytes and parameters that torch counts.

Nothing is computed: the models run on fake tensors.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLHunyuanVideo, HunyuanVideoTransformer3DModel
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    LlamaConfig,
    LlamaModel,
    LlavaConfig,
    LlavaModel,
)

from longtake.parallel import ParallelDims, TokenShards
from longtake.parallel.heads import HeadShards
from longtake.pipelines import registry
from longtake.pipelines.costs import ModelCosts, Work
from longtake.pipelines.counting.work import WorkCounter
from longtake.pipelines.layout import VideoLayout
from longtake.pipelines.loading.checkpoint import Checkpoint
from longtake.pipelines.models.hunyuan_video import configs
from longtake.pipelines.models.hunyuan_video.codec.costs import AutoencoderCosts
from longtake.pipelines.models.hunyuan_video.costs import HunyuanVideoCosts
from longtake.pipelines.models.hunyuan_video.transformer.denoiser import HunyuanVideoDenoiser
from longtake.pipelines.operations import LiveBytes, observing
from longtake.pipelines.spec import LatentGrid
from longtake.pipelines.text_encoders import configs as text_configs
from longtake.pipelines.text_encoders.layers import streaming_parameters
from tests import tiny
from tests.layouts import layout_name
from tests.rendering import first_step, request
from tests.unit.pipelines.models.fake_ranks import one_rank_of

PRESETS = Path(__file__).parents[4] / "configs" / "models"

DTYPES = [torch.float32, torch.bfloat16]

BENCHMARK: dict[str, Any] = dict(  # benchmarks/denoise
    num_attention_heads=8,
    attention_head_dim=64,
    num_layers=2,
    num_single_layers=4,
    text_embed_dim=512,
    pooled_projection_dim=256,
    rope_axes_dim=(16, 24, 24),
)

ODD: dict[str, Any] = dict(
    in_channels=6,
    out_channels=None,
    num_attention_heads=5,
    attention_head_dim=24,
    num_layers=0,
    num_single_layers=3,
    num_refiner_layers=3,
    mlp_ratio=3.0,
    patch_size_t=2,
    qk_norm=None,
    guidance_embeds=False,
    text_embed_dim=40,
    pooled_projection_dim=12,
    rope_axes_dim=(8, 8, 8),
)


def architecture(name: str) -> dict[str, Any]:
    """Arguments of HunyuanVideoTransformer3DModel."""
    if name == "demo":
        return _config(PRESETS / "demo", "transformer")
    if name == "tiny":
        return _public(tiny.transformer().config)
    if name == "token_replace":
        return {**BENCHMARK, "image_condition_type": name}
    if name == "latent_concat":
        return {**BENCHMARK, "image_condition_type": name, "in_channels": 33}
    if name == "replaced, 15 chunks":
        return architecture("token_replace")
    return {"released": {}, "odd": ODD}.get(name, BENCHMARK)


def _config(folder: Path, component: str) -> dict[str, Any]:
    return _public(json.loads((folder / component / "config.json").read_text()))


def _public(config: Any) -> dict[str, Any]:
    return {name: value for name, value in config.items() if not name.startswith("_")}


def make_costs(settings: dict[str, Any]) -> HunyuanVideoCosts:
    """The cost model of a transformer's configuration."""
    return HunyuanVideoCosts(
        configs.TransformerConfig.model_validate(settings),
        configs.VaeConfig(),
        text_configs.LlamaConfig(),
        text_configs.ClipTextConfig(),
    )


# Parameters.


@pytest.mark.parametrize(
    "name", ["released", "demo", "tiny", "benchmark", "odd", "token_replace", "latent_concat"]
)
def test_transformer_shapes(name: str) -> None:
    settings = architecture(name)
    with torch.device("meta"):
        model = HunyuanVideoTransformer3DModel(**settings)
    costs = make_costs(settings)
    found = Counter(tuple(weights.shape) for weights in model.parameters())
    assert Counter(costs.transformer_shapes) == found
    assert costs.transformer_parameters == _parameters(model)
    blocks = [*model.transformer_blocks, *model.single_transformer_blocks]
    assert costs.block_parameters == max(map(_parameters, blocks))
    assert costs.attention.num_attentions == len(blocks)


def test_single_kind_of_block() -> None:
    double, single, none = (
        make_costs({**BENCHMARK, "num_layers": num_double, "num_single_layers": num_single})
        for num_double, num_single in ((1, 0), (0, 1), (0, 0))
    )
    outside = none.transformer_parameters
    assert double.block_parameters == double.transformer_parameters - outside
    assert single.block_parameters == single.transformer_parameters - outside
    assert double.block_parameters > single.block_parameters > none.block_parameters == 0


@pytest.mark.parametrize(
    "name", ["hunyuan-video", "demo", "tiny", "hunyuan-video-i2v", "demo-i2v", "token_replace"]
)
def test_other_parameters(name: str, model: str, animators: dict[str, str]) -> None:
    built = {"tiny": model, **animators}
    checkpoint = Checkpoint.open(built.get(name, name), configs_only=True)
    costs = registry.inspect(checkpoint, weights=False).costs
    folder = Path(checkpoint.folder)
    with torch.device("meta"):
        vae = AutoencoderKLHunyuanVideo(**_config(folder, "vae"))
        encoder = _config(folder, "text_encoder")
        llama: torch.nn.Module = (
            LlavaModel(LlavaConfig(**encoder))
            if "vision_config" in encoder
            else LlamaModel(LlamaConfig(**encoder))
        )
        clip = CLIPTextModel(CLIPTextConfig(**_config(folder, "text_encoder_2")))
        transformer = HunyuanVideoTransformer3DModel(**_config(folder, "transformer"))
    assert costs.other_parameters == {
        "autoencoder": _parameters(vae),
        "text_encoders": _parameters(llama) + _parameters(clip),
    }
    assert costs.transformer_parameters == _parameters(transformer)
    assert costs.text_streaming_parameters == sum(map(streaming_parameters, (llama, clip)))


def _parameters(model: torch.nn.Module) -> int:
    return sum(weights.numel() for weights in model.parameters())


# Work of one pass.


@dataclass(frozen=True)
class Counts:
    """Work of one function, as counted by torch.

    Attributes:
        flops: Floating-point operations.
        memory_bytes: Bytes read and written outside of matrix products and convolutions.
        launches: Kernel launches.
        peak_bytes: Peak memory of the tensors that the function creates.
    """

    flops: float
    memory_bytes: float
    launches: float
    peak_bytes: int

    @classmethod
    def of(cls, function: Callable[[], torch.Tensor]) -> Counts:
        """Run a function on fake tensors."""
        counter, memory = WorkCounter(), LiveBytes()
        with observing(counter, memory):
            function()
        work = counter.work
        return cls(_flops(work), work.memory_bytes, work.launches, memory.peak)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def make_denoiser(
    shapes: FakeTensorMode, settings: dict[str, Any], dtype: torch.dtype
) -> HunyuanVideoDenoiser:
    """A denoiser without weights."""
    with shapes, default_dtype(dtype):
        denoiser = HunyuanVideoDenoiser(
            HunyuanVideoTransformer3DModel(**settings).requires_grad_(False)
        )
    denoiser.chunk_feed_forwards()
    return denoiser


@contextmanager
def one_pass(
    shapes: FakeTensorMode,
    denoiser: HunyuanVideoDenoiser,
    grid: LatentGrid,
    text_tokens: int,
    dims: ParallelDims,
) -> Iterator[tuple[Callable[[], torch.Tensor], int, int]]:
    """Rank 0's pass as a function, its number of tokens, and the bytes allocated before it."""
    config, dtype = denoiser.transformer.config, denoiser.transformer.dtype
    with one_rank_of(dims.world_size):
        mesh = dims.build_mesh("cpu")
        own = TokenShards.even(grid.num_tokens, dims).counts[0]
        with shapes:
            streams = {
                "text": torch.empty(1, text_tokens, config.text_embed_dim, dtype=dtype),
                "pooled": torch.empty(1, config.pooled_projection_dim, dtype=dtype),
            }
            image = torch.empty(1, grid.shape[1], 1, *grid.shape[3:])
            layout = VideoLayout.of(grid, dims, mesh)
            branch = denoiser.prepare(streams, layout, request(), {"image": image})
            tokens = torch.empty(1, own, math.prod(grid.patch) * grid.shape[1])
            rotation = branch.attention.rotation
            held = tokens.nbytes + rotation.nbytes
            held += 0 if branch.concat_values is None else branch.concat_values.nbytes
            yield lambda: denoiser(tokens, first_step(), branch), len(rotation), held


PASSES = {
    "tiny": (LatentGrid((1, 4, 9, 40, 40), (1, 2, 2)), 9),
    "odd": (LatentGrid((1, 6, 4, 40, 40), (2, 2, 2)), 9),
    "demo": (LatentGrid((1, 8, 9, 40, 40), (1, 4, 4)), 20),
    "benchmark": (LatentGrid((1, 16, 9, 40, 40), (1, 2, 2)), 40),
    "token_replace": (LatentGrid((1, 16, 9, 40, 40), (1, 2, 2)), 40),
    "latent_concat": (LatentGrid((1, 16, 9, 40, 40), (1, 2, 2)), 40),
    "released": (LatentGrid((1, 16, 33, 90, 160), (1, 2, 2)), 73),
    "two chunks": (LatentGrid((1, 16, 9, 80, 80), (1, 2, 2)), 40),
    "five chunks": (LatentGrid((1, 16, 9, 128, 128), (1, 2, 2)), 40),
    "replaced, 15 chunks": (LatentGrid((1, 16, 33, 90, 160), (1, 2, 2)), 73),
}


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *product(("tiny", "odd", "demo", "benchmark", "token_replace", "latent_concat"), DTYPES),
        *product(("two chunks", "five chunks", "replaced, 15 chunks"), DTYPES),
        ("released", torch.bfloat16),
    ],
    ids=str,
)
def test_work_of_one_rank(shapes: FakeTensorMode, name: str, dtype: torch.dtype) -> None:
    """The feed-forward is three times as wide as the model in "demo" and "odd", else four."""
    (grid, text_tokens), settings = PASSES[name], architecture(name)
    if name == "released":  # a quarter of its blocks, each at full size
        settings = {"num_layers": 5, "num_single_layers": 10}
    costs, denoiser = make_costs(settings), make_denoiser(shapes, settings, dtype)
    with one_pass(shapes, denoiser, grid, text_tokens, ParallelDims()) as (run, num_tokens, held):
        counts = Counts.of(run)
    work = costs.transformer_pass(num_tokens, text_tokens, dtype.itemsize)
    across_ranks = 4 * num_tokens**2 * costs.attention.width * costs.attention.num_attentions
    assert _flops(work) + across_ranks == pytest.approx(counts.flops, rel=0.005)
    assert work.memory_bytes == pytest.approx(counts.memory_bytes, rel=0.15)
    assert 1 / 1.5 < work.launches / counts.launches < 1.5
    peak = costs.activation_bytes(
        num_tokens, dtype.itemsize, ulysses=False, ring=False, head_share=1.0
    )
    assert peak == pytest.approx(counts.peak_bytes + held, rel=0.1)


def _flops(work: Work) -> float:
    return work.linear_flops + work.attention_flops + work.convolution_flops


def test_few_tokens_of_a_tiny_model(shapes: FakeTensorMode) -> None:
    """Embeddings and modulation, computed once per pass, dominate."""
    grid, text_tokens = LatentGrid((1, 4, 1, 4, 4), (1, 2, 2)), 2
    settings = architecture("tiny")
    denoiser = make_denoiser(shapes, settings, torch.float32)
    with one_pass(shapes, denoiser, grid, text_tokens, ParallelDims()) as (run, num_tokens, _):
        counts = Counts.of(run)
    costs = make_costs(settings)
    across_ranks = 4 * num_tokens**2 * costs.attention.width * costs.attention.num_attentions
    found = _flops(costs.transformer_pass(num_tokens, text_tokens, 4)) + across_ranks
    assert found == pytest.approx(counts.flops, rel=0.03)


LAYOUTS = [
    ParallelDims(ring_degree=ring_degree, ulysses_degree=ulysses_degree)
    for ring_degree, ulysses_degree in [(1, 2), (1, 4), (1, 5), (2, 1), (4, 1), (2, 2), (2, 4)]
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["benchmark", "demo"])
def test_activation_bytes_with_exchanges(
    shapes: FakeTensorMode, name: str, dtype: torch.dtype
) -> None:
    """Eight and six heads: uneven over five ranks, six also over four.

    The peak is in the attention of single-stream blocks: the tokens are many times a chunk.
    """
    (grid, text_tokens), channels = PASSES[name], PASSES[name][0].shape[1]
    grid = replace(grid, shape=(1, channels, 33, 120, 160))
    few = {"num_layers": 0, "num_single_layers": 2, "num_refiner_layers": 0}
    settings = {**architecture(name), **few}
    costs, denoiser = make_costs(settings), make_denoiser(shapes, settings, dtype)
    for dims in LAYOUTS:
        with one_pass(shapes, denoiser, grid, text_tokens, dims) as (run, num_tokens, held):
            live = LiveBytes()
            with observing(live):
                run()
        predicted = costs.activation_bytes(
            num_tokens,
            dtype.itemsize,
            ulysses=dims.ulysses_degree > 1,
            ring=dims.ring_degree > 1,
            head_share=_head_share(costs, dims),
        )
        assert predicted == pytest.approx(live.peak + held, rel=0.1), layout_name(dims)


def _head_share(costs: ModelCosts, dims: ParallelDims) -> float:
    num_heads = costs.attention.num_heads
    most = max(map(len, HeadShards.even(num_heads, num_heads, dims.ulysses_degree).query))
    return most * dims.ulysses_degree / num_heads


# Text encoding and tiles.


def test_text_encoding(shapes: FakeTensorMode) -> None:
    """Encoders as wide as the released ones, but shallower."""
    folder, shallow = PRESETS / "hunyuan-video", {"num_hidden_layers": 2}
    llama, clip = (
        {**_config(folder, each), **shallow} for each in ("text_encoder", "text_encoder_2")
    )
    costs = HunyuanVideoCosts(
        configs.TransformerConfig(),
        configs.VaeConfig(),
        text_configs.LlamaConfig.model_validate(llama),
        text_configs.ClipTextConfig.model_validate(clip),
    )
    with shapes:
        models = LlamaModel(LlamaConfig(**llama)), CLIPTextModel(CLIPTextConfig(**clip))
        prompt, short = (torch.ones(1, length, dtype=torch.long) for length in (95 + 256, 77))
        counts = [
            Counts.of(lambda: models[0](prompt).last_hidden_state),
            Counts.of(lambda: models[1](short).last_hidden_state),
        ]
    found = sum(each.flops for each in counts)
    assert _flops(costs.text_encoding(256, 2)) == pytest.approx(found, rel=0.03)


TILES = [(1, 8, 8), (1, 32, 32), (2, 32, 32), (3, 16, 16), (5, 32, 32), (4, 32, 18), (2, 5, 3)]


@pytest.mark.parametrize(
    ("name", "dtype"), [("released", torch.float16), ("demo", torch.float32)], ids=str
)
def test_tile_decoding(shapes: FakeTensorMode, name: str, dtype: torch.dtype) -> None:
    settings = {} if name == "released" else _config(PRESETS / "demo", "vae")
    costs = AutoencoderCosts(configs.VaeConfig.model_validate(settings))
    with shapes, default_dtype(dtype):
        vae = AutoencoderKLHunyuanVideo(**settings).requires_grad_(False)
    for cells in TILES:
        counts = _decoding(shapes, vae, cells)
        work = costs.decoding(cells, dtype.itemsize)
        assert _flops(work) == pytest.approx(counts.flops, rel=0.01), cells
        assert work.memory_bytes == pytest.approx(counts.memory_bytes, rel=0.2), cells
        assert 1 / 1.5 < work.launches / counts.launches < 1.5, cells
        over = costs.peak_bytes(cells, dtype.itemsize) / counts.peak_bytes
        assert 0.88 < over < (1.2 if cells[0] == 1 else 1.12), cells


def _decoding(shapes: FakeTensorMode, vae: Any, cells: tuple[int, int, int]) -> Counts:
    with shapes:
        latents = torch.empty(1, vae.config.latent_channels, *cells, dtype=vae.dtype)
        return Counts.of(lambda: vae.decoder(vae.post_quant_conv(latents)))
