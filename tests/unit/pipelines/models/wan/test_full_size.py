"""The released architectures at full size, on fake tensors: no weights, no memory, no peers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel
from torch._subclasses.fake_tensor import FakeTensorMode

from longtake.parallel import ParallelDims
from longtake.pipelines.layout import VideoLayout
from longtake.pipelines.models.wan.transformer.denoiser import WanDenoiser
from longtake.pipelines.runtime.stepper import Step
from longtake.pipelines.spec import LatentGrid
from tests.layouts import layout_name
from tests.unit.pipelines.models.fake_ranks import one_rank_of
from tests.wan_denoising import PATCH, REQUEST


@dataclass(frozen=True)
class Model:
    """A released architecture.

    Attributes:
        config: Its transformers' configuration, where it differs from diffusers' defaults.
        billions: Parameters of all transformers, in billions.
        experts: Number of transformers.
        pictures: Number of pictures that the image encoder sees.
        condition_channels: Channels beside the noise.
    """

    config: dict[str, Any]
    billions: float
    experts: int = 1
    pictures: int = 0
    condition_channels: int = 0


_IMAGE = {"in_channels": 36, "image_dim": 1280, "added_kv_proj_dim": 5120}

MODELS = {
    "2.1-t2v-1.3b": Model(
        {"num_layers": 30, "num_attention_heads": 12, "ffn_dim": 8960}, billions=1.419
    ),
    "2.1-t2v-14b": Model({}, billions=14.288),
    "2.1-i2v-14b": Model(_IMAGE, billions=16.395, pictures=1, condition_channels=20),
    "2.1-flf2v-14b": Model(
        {**_IMAGE, "pos_embed_seq_len": 514}, billions=16.396, pictures=2, condition_channels=20
    ),
    "2.2-t2v-a14b": Model({}, billions=28.577, experts=2),
    "2.2-i2v-a14b": Model({"in_channels": 36}, billions=28.578, experts=2, condition_channels=20),
    "2.2-ti2v-5b": Model(
        {
            "num_layers": 30,
            "num_attention_heads": 24,
            "ffn_dim": 14336,
            "in_channels": 48,
            "out_channels": 48,
        },
        billions=5.000,
    ),
}

GRIDS = {
    "480p": LatentGrid((1, 16, 21, 60, 104), PATCH),
    "720p": LatentGrid((1, 16, 21, 90, 160), PATCH),
}
"""81 frames of 480 x 832 and of 720 x 1280."""

GRIDS_5B = {
    "480p": LatentGrid((1, 48, 31, 30, 52), PATCH),
    "720p": LatentGrid((1, 48, 31, 44, 80), PATCH),
}
"""121 frames of 480 x 832 and of 704 x 1280, whose latents are half as high and wide."""

NUM_TOKENS = {"480p": 32_760, "720p": 75_600}
NUM_TOKENS_5B = {"480p": 12_090, "720p": 27_280}

LAYOUTS = [
    ParallelDims(),
    ParallelDims(ulysses_degree=5),
    ParallelDims(ring_degree=2, ulysses_degree=4),
    ParallelDims(ring_degree=2, ulysses_degree=8),
]


@cache
def denoiser(name: str, mode: FakeTensorMode) -> WanDenoiser:
    """A model whose tensors have shapes only, with two blocks for all: blocks are alike."""
    model = MODELS[name]
    components = ("transformer", "transformer_2")[: model.experts]
    with mode:
        built = {
            each: WanTransformer3DModel(**{**model.config, "num_layers": 2}) for each in components
        }
        return WanDenoiser(built, boundary=875.0).requires_grad_(False)


@pytest.mark.parametrize("name", MODELS)
def test_parameters(name: str) -> None:
    model = MODELS[name]
    with torch.device("meta"):
        built = WanTransformer3DModel(**model.config)
    found = sum(weights.numel() for weights in built.parameters()) * model.experts
    assert found / 1e9 == pytest.approx(model.billions, abs=1e-3)


@pytest.mark.parametrize("dims", LAYOUTS, ids=layout_name)
@pytest.mark.parametrize("size", GRIDS)
@pytest.mark.parametrize("name", MODELS)
def test_last_rank(shapes: FakeTensorMode, name: str, size: str, dims: ParallelDims) -> None:
    model = MODELS[name]
    is_5b = name == "2.2-ti2v-5b"
    grid = (GRIDS_5B if is_5b else GRIDS)[size]
    assert grid.num_tokens == (NUM_TOKENS_5B if is_5b else NUM_TOKENS)[size]
    with shapes:
        pictures = {}
        if model.condition_channels:
            pictures["condition"] = torch.empty(1, model.condition_channels, *grid.shape[2:])
    check(shapes, name, grid, dims, dims.world_size - 1, pictures)


@pytest.mark.parametrize("dims", LAYOUTS, ids=layout_name)
@pytest.mark.parametrize("is_last", [False, True], ids=["first-rank", "last-rank"])
def test_5b_with_a_picture(shapes: FakeTensorMode, is_last: bool, dims: ParallelDims) -> None:
    """The first rank owns tokens of the first frame, and the last one does not."""
    grid, rank = GRIDS_5B["720p"], (dims.world_size - 1) * is_last
    with shapes:
        pictures = {"first_frame": torch.empty(1, 48, 1, 44, 80)}
    inputs = check(shapes, "2.2-ti2v-5b", grid, dims, rank, pictures)
    assert inputs.first_frame is not None
    assert inputs.first_frame.shape == (1, 22 * 40 if rank == 0 else 0, 48 * 4)


def check(
    shapes: FakeTensorMode,
    name: str,
    grid: LatentGrid,
    dims: ParallelDims,
    rank: int,
    pictures: dict[str, torch.Tensor],
) -> Any:
    """Run an early and a late step as one rank of many; returns the inputs of the pass."""
    model = denoiser(name, shapes)
    with one_rank_of(dims.world_size, rank):
        layout = VideoLayout.of(grid, dims, dims.build_mesh("cpu"))
        with shapes:
            streams = {"text": torch.empty(1, 512, 4096)}
            if MODELS[name].pictures:
                streams["image"] = torch.empty(MODELS[name].pictures, 257, 1280)
            inputs = model.prepare(streams, layout, REQUEST, pictures)
            tokens = layout.split(torch.empty(grid.shape))
            for value in (999.0, 500.0)[: MODELS[name].experts]:
                velocity = model(tokens, Step(0, torch.tensor(value), value), inputs)
                assert velocity.shape == tokens.shape
    assert abs(tokens.shape[1] - grid.num_tokens / dims.world_size) < 1
    image_keys = None if not MODELS[name].pictures else 257 * MODELS[name].pictures
    assert len(inputs.keys) == MODELS[name].experts
    for keys in inputs.keys.values():
        assert keys.text.shape[1] == 512
        assert (None if keys.image is None else keys.image.shape[1]) == image_keys
    return inputs
