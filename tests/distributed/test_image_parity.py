"""A picture is animated alike on any number of ranks, in any layout."""

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
    """3 frames of 6 tokens, with and without guidance; 2 of 15; 2 of 1; for two videos, too."""
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
    asked = requests()
    if conditioning == "token_replace":
        asked.append(image_request(num_frames=1))  # nothing moves
    check(ranks, animators[conditioning], dims, asked)


@pytest.mark.parametrize("dims", CFG_LAYOUTS, ids=layout_name)
@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_branches_side_by_side_give_the_latents_of_one_rank(
    ranks: RankGroups, animators: dict[str, str], conditioning: str, dims: ParallelDims
) -> None:
    """Their texts differ in length: of the picture beside a negative prompt more is taken."""
    check(ranks, animators[conditioning], dims, requests(**GUIDED))


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_split_weights_give_the_same_latents(
    ranks: RankGroups, animators: dict[str, str], conditioning: str
) -> None:
    folder, asked = animators[conditioning], requests()
    dims = ParallelDims(ulysses_degree=2)
    for latents in ranks.run(2, latents_on_ranks, folder, asked, dims, "float32", True):
        for at, each in enumerate(asked):
            np.testing.assert_allclose(latents[at], latents_of_one(folder, each), atol=1e-4)


def num_still(folder: str, asked: ResolvedRequest, dims: ParallelDims) -> tuple[int, int]:
    """On a rank: how many of its tokens are the picture's, and how many of the video it has."""
    pipeline = loaded(folder, True)
    grid, mesh = pipeline.spec.grid(asked), world().mesh(dims)
    streams = world().broadcast_tensors(
        pipeline.encode(asked, noise_picture(asked)) if world().rank == 0 else None
    )
    branch = pipeline.denoiser.branch(streams, grid, dims, mesh, asked)
    _, video, _ = shards_of(grid.num_tokens, streams["text"].shape[1], dims)
    return branch.num_still, video.counts[world().rank]


def test_the_first_frame_ends_inside_of_a_rank_at_its_edge_and_after_several(
    ranks: RankGroups, animators: dict[str, str]
) -> None:
    """What the layouts above are checked on is what they should be checked on."""
    places = set()
    for dims in LAYOUTS[1:]:
        for asked in requests():
            found = ranks.run(dims.world_size, num_still, animators["token_replace"], asked, dims)
            first_frame = asked.height * asked.width // 16**2
            assert sum(still for still, _ in found) == first_frame
            begins = 0
            for still, own in found:
                assert still == min(max(first_frame - begins, 0), own)
                begins += own
            if any(0 < still < own for still, own in found):
                places.add("inside")
            elif sum(0 < still for still, _ in found) == 1:
                places.add("edge")
            if sum(0 < still for still, _ in found) > 1:
                places.add("several")
            if any(own == 0 for _, own in found):
                places.add("no tokens at all")
    assert places == {"inside", "edge", "several", "no tokens at all"}
