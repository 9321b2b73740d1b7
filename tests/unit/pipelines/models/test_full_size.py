"""The released models at full size, on fake tensors: no weights, no memory, no peers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import HunyuanVideoTransformer3DModel
from torch._subclasses.fake_tensor import FakeTensorMode

from longtake.parallel import ParallelDims, TokenShards
from longtake.pipelines.layout import VideoLayout
from longtake.pipelines.models.hunyuan_video.transformer.denoiser import HunyuanVideoDenoiser
from longtake.pipelines.spec import LatentGrid
from tests.layouts import layout_name
from tests.rendering import first_step, image_request, request
from tests.unit.pipelines.models.fake_ranks import one_rank_of

GRID = LatentGrid((1, 16, 33, 90, 160), (1, 2, 2))
TEXT_TOKENS = 73
RELEASED_I2V = Path(__file__).parents[4] / "configs" / "models" / "hunyuan-video-i2v"

LAYOUTS = [
    ParallelDims(),
    ParallelDims(ulysses_degree=5),
    ParallelDims(ring_degree=5),
    ParallelDims(ulysses_degree=6),
    ParallelDims(ring_degree=2, ulysses_degree=4),
    ParallelDims(ring_degree=2, ulysses_degree=8),
]


FEW_BLOCKS = {"num_layers": 2, "num_single_layers": 2}
"""Blocks are alike: all of them run on one rank, some of them in the layouts of several."""


def build(shapes: FakeTensorMode, **config: Any) -> tuple[HunyuanVideoDenoiser, ...]:
    """A model as it was released, and one of a few of its blocks."""
    with shapes:
        models = [HunyuanVideoTransformer3DModel(**config, **few) for few in ({}, FEW_BLOCKS)]
        whole, few = (HunyuanVideoDenoiser(model.requires_grad_(False)) for model in models)
    assert sum(weights.numel() for weights in whole.parameters()) > 12.8e9
    return whole, few


@pytest.fixture(scope="module")
def denoisers(shapes: FakeTensorMode) -> tuple[HunyuanVideoDenoiser, ...]:
    return build(shapes)


@pytest.mark.parametrize(
    ("dims", "rank"),
    [(dims, rank) for dims in LAYOUTS for rank in sorted({0, dims.world_size - 1})],
    ids=lambda each: layout_name(each) if isinstance(each, ParallelDims) else f"rank{each}",
)
def test_720p_129_frames(
    shapes: FakeTensorMode,
    denoisers: tuple[HunyuanVideoDenoiser, ...],
    dims: ParallelDims,
    rank: int,
) -> None:
    denoiser = denoisers[dims.world_size > 1]
    assert GRID.num_tokens == 118_800
    with one_rank_of(dims.world_size, rank):
        mesh = dims.build_mesh("cpu")
        with shapes:
            streams = {"text": torch.empty(1, TEXT_TOKENS, 4096), "pooled": torch.empty(1, 768)}
            branch = denoiser.prepare(streams, VideoLayout.of(GRID, dims, mesh), request(), {})
            own_tokens = TokenShards.even(GRID.num_tokens, dims).counts[rank]
            tokens = torch.empty(1, own_tokens, 16 * 2 * 2)
            velocity = denoiser(tokens, first_step(), branch)
    assert velocity.shape == tokens.shape
    owned = len(branch.attention.rotation)
    assert abs(owned - (GRID.num_tokens + TEXT_TOKENS) / dims.world_size) < 1


@pytest.fixture(scope="module")
def animators(shapes: FakeTensorMode) -> dict[str, tuple[HunyuanVideoDenoiser, ...]]:
    """The released image-to-video model, and its predecessor."""
    config = json.loads((RELEASED_I2V / "transformer" / "config.json").read_text())
    config = {
        name: value
        for name, value in config.items()
        if not name.startswith("_") and name not in FEW_BLOCKS
    }
    older = {"image_condition_type": "latent_concat", "in_channels": 33, "guidance_embeds": False}
    kinds = (config, {**config, **older})
    return {kind["image_condition_type"]: build(shapes, **kind) for kind in kinds}


@pytest.mark.parametrize(
    ("conditioning", "num_text_tokens"),
    [("token_replace", 144 + 252), ("token_replace", 288 + 252), ("latent_concat", 288 + 252)],
)
@pytest.mark.parametrize(
    ("dims", "rank"),
    [
        (ParallelDims(), 0),
        (ParallelDims(ulysses_degree=5), 0),
        (ParallelDims(ring_degree=2, ulysses_degree=4), 7),
        (ParallelDims(ring_degree=2, ulysses_degree=8), 0),
        (ParallelDims(ring_degree=2, ulysses_degree=8), 15),
    ],
    ids=lambda each: layout_name(each) if isinstance(each, ParallelDims) else f"rank{each}",
)
def test_image_to_video_720p_129_frames(
    shapes: FakeTensorMode,
    animators: dict[str, tuple[HunyuanVideoDenoiser, ...]],
    conditioning: str,
    num_text_tokens: int,
    dims: ParallelDims,
    rank: int,
) -> None:
    denoiser = animators[conditioning][dims.world_size > 1]
    resolved = image_request(height=720, width=1280, num_frames=129)
    with one_rank_of(dims.world_size, rank):
        mesh = dims.build_mesh("cpu")
        with shapes:
            streams = {"text": torch.empty(1, num_text_tokens, 4096), "pooled": torch.empty(1, 768)}
            image = torch.empty(1, 16, 1, 90, 160)
            layout = VideoLayout.of(GRID, dims, mesh)
            branch = denoiser.prepare(streams, layout, resolved, {"image": image})
            own_tokens = TokenShards.even(GRID.num_tokens, dims).counts[rank]
            tokens = torch.empty(1, own_tokens, 16 * 2 * 2)
            velocity = denoiser(tokens, first_step(), branch)
    assert velocity.shape == tokens.shape
    first_frame = 45 * 80 if conditioning == "token_replace" and rank == 0 else 0
    assert branch.num_first_frame_tokens == first_frame
    if conditioning == "latent_concat":
        assert branch.concat_values is not None
        assert branch.concat_values.shape == (1, own_tokens, 17 * 2 * 2)
