"""Image-to-video gives the same latents on any number of ranks, in any layout."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from longtake.configs.request import ResolvedRequest
from longtake.engine.media.pictures.picture import noise_picture
from longtake.parallel import ParallelDims
from longtake.pipelines.spec import shards_of
from tests.distributed.test_rendering_parity import CFG_LAYOUTS, GUIDED, check
from tests.layouts import LAYOUTS, layout_name
from tests.ranks import RankGroups
from tests.rendering import image_request, latents_of_one, latents_on_ranks, loaded, world

CONDITIONINGS = ("token_replace", "latent_concat")


def requests(**changes: Any) -> list[ResolvedRequest]:
    """3 latent frames of 6 tokens, for two videos and with guidance; 2 of 15 tokens; 2 of 1."""
    sizes: list[dict[str, Any]] = [
        dict(num_videos=2),
        dict(**GUIDED),
        dict(height=48, width=80, num_frames=5, i2v_mode="dynamic", flow_shift=17.0),
        dict(height=16, width=16, num_frames=5, prompt="cat", resize_mode="pad"),
    ]
    return [image_request(**{"num_inference_steps": 2, **size, **changes}) for size in sizes]


@pytest.mark.parametrize("dims", LAYOUTS[1:], ids=layout_name)
@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_every_layout_gives_the_latents_of_one_rank(
    ranks: RankGroups, animators: dict[str, str], conditioning: str, dims: ParallelDims
) -> None:
    cases = requests()
    if conditioning == "token_replace":
        cases.append(image_request(num_frames=1))  # the picture alone
    check(ranks, animators[conditioning], dims, cases)


@pytest.mark.parametrize("dims", CFG_LAYOUTS, ids=layout_name)
@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_parallel_branches_give_the_latents_of_one_rank(
    ranks: RankGroups, animators: dict[str, str], conditioning: str, dims: ParallelDims
) -> None:
    """The branches have texts of different lengths, with different numbers of image tokens."""
    check(ranks, animators[conditioning], dims, requests(**GUIDED))


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_sharded_weights_give_the_same_latents(
    ranks: RankGroups, animators: dict[str, str], conditioning: str
) -> None:
    folder, cases = animators[conditioning], requests()
    dims = ParallelDims(ulysses_degree=2)
    for latents in ranks.run(2, latents_on_ranks, folder, cases, dims, "float32", True):
        for at, each in enumerate(cases):
            np.testing.assert_allclose(latents[at], latents_of_one(folder, each), atol=1e-4)


def num_still(folder: str, request: ResolvedRequest, dims: ParallelDims) -> tuple[int, int]:
    """On one rank: its number of picture tokens, and of video tokens."""
    pipeline = loaded(folder, True)
    grid, mesh = pipeline.spec.grid(request), world().mesh(dims)
    streams = world().broadcast_tensors(
        pipeline.encode(request, noise_picture(request)) if world().rank == 0 else None
    )
    branch = pipeline.denoiser.branch(streams, grid, dims, mesh, request)
    _, video, _ = shards_of(grid.num_tokens, streams["text"].shape[1], dims)
    return branch.num_still, video.counts[world().rank]


def test_layouts_and_requests_cover_every_position_of_the_first_frame(
    ranks: RankGroups, animators: dict[str, str]
) -> None:
    """The first frame ends inside a rank, at its edge, and after several ranks."""
    positions = set()
    for dims in LAYOUTS[1:]:
        for request in requests():
            found = ranks.run(dims.world_size, num_still, animators["token_replace"], request, dims)
            first_frame = request.height * request.width // 16**2
            assert sum(still for still, _ in found) == first_frame
            start = 0
            for still, own in found:
                assert still == min(max(first_frame - start, 0), own)
                start += own
            if any(0 < still < own for still, own in found):
                positions.add("inside")
            elif sum(0 < still for still, _ in found) == 1:
                positions.add("edge")
            if sum(0 < still for still, _ in found) > 1:
                positions.add("several")
            if any(own == 0 for _, own in found):
                positions.add("no tokens at all")
    assert positions == {"inside", "edge", "several", "no tokens at all"}
