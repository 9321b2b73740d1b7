"""Image to video gives the same latents in every layout."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from longtake.configs.request import ResolvedRequest
from longtake.engine.media.pictures.picture import noise_pictures
from longtake.parallel import ParallelDims
from longtake.pipelines.layout import VideoLayout
from longtake.pipelines.spec import shards_of
from tests.distributed.test_rendering_parity import CFG_LAYOUTS, GUIDED, check
from tests.layouts import LAYOUTS, layout_name
from tests.ranks import RankGroups
from tests.rendering import (
    image_request,
    latents_on_one_rank,
    latents_on_ranks,
    load_pipeline,
    world,
)

CONDITIONINGS = ("token_replace", "latent_concat")


def requests(**changes: Any) -> list[ResolvedRequest]:
    """3 latent frames of 6 tokens (two videos; true CFG), 2 of 15 tokens, 2 of 1 token."""
    sizes: list[dict[str, Any]] = [
        dict(num_videos=2),
        dict(**GUIDED),
        dict(height=48, width=80, num_frames=5, i2v_mode="dynamic", flow_shift=17.0),
        dict(height=16, width=16, num_frames=5, prompt="cat", resize_mode="pad"),
    ]
    return [image_request(**{"num_inference_steps": 2, **size, **changes}) for size in sizes]


@pytest.mark.parametrize("dims", LAYOUTS[1:], ids=layout_name)
@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_every_layout_matches_one_rank(
    ranks: RankGroups, animators: dict[str, str], conditioning: str, dims: ParallelDims
) -> None:
    resolved = requests()
    if conditioning == "token_replace":
        resolved.append(image_request(num_frames=1))  # no frame but the picture
    check(ranks, animators[conditioning], dims, resolved)


@pytest.mark.parametrize("dims", CFG_LAYOUTS, ids=layout_name)
@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_concurrent_branches_match_one_rank(
    ranks: RankGroups, animators: dict[str, str], conditioning: str, dims: ParallelDims
) -> None:
    """Branches differ in length: the negative one has more picture tokens."""
    check(ranks, animators[conditioning], dims, requests(**GUIDED))


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_sharded_weights_give_the_same_latents(
    ranks: RankGroups, animators: dict[str, str], conditioning: str
) -> None:
    folder, resolved = animators[conditioning], requests()
    dims = ParallelDims(ulysses_degree=2)
    for latents in ranks.run(2, latents_on_ranks, folder, resolved, dims, "float32", "split"):
        for at, each in enumerate(resolved):
            np.testing.assert_allclose(latents[at], latents_on_one_rank(folder, each), atol=1e-4)


def token_counts(folder: str, resolved: ResolvedRequest, dims: ParallelDims) -> tuple[int, int]:
    """On a rank: its number of first-frame tokens and of video tokens."""
    pipeline = load_pipeline(folder, True)
    grid = pipeline.spec.grid(resolved)
    layout = VideoLayout.of(grid, dims, world().mesh(dims))
    streams = world().broadcast_tensors(
        pipeline.encode(resolved, noise_pictures(resolved, ["image"]))[0]
        if world().rank == 0
        else None
    )
    branch = pipeline.denoiser.prepare(streams, layout, resolved, {})
    _, video, _ = shards_of(grid.num_tokens, streams["text"].shape[1], dims)
    return branch.num_first_frame_tokens, video.counts[world().rank]


def test_layouts_cover_all_positions_of_the_first_frame(
    ranks: RankGroups, animators: dict[str, str]
) -> None:
    """The layouts above include all ways in which ranks share the first frame."""
    positions = set()
    for dims in LAYOUTS[1:]:
        for resolved in requests():
            found = ranks.run(
                dims.world_size, token_counts, animators["token_replace"], resolved, dims
            )
            first_frame = resolved.height * resolved.width // 16**2
            assert sum(still for still, _ in found) == first_frame
            begins = 0
            for still, own in found:
                assert still == min(max(first_frame - begins, 0), own)
                begins += own
            if any(0 < still < own for still, own in found):
                positions.add("inside")
            elif sum(0 < still for still, _ in found) == 1:
                positions.add("edge")
            if sum(0 < still for still, _ in found) > 1:
                positions.add("several")
            if any(own == 0 for _, own in found):
                positions.add("no tokens at all")
    assert positions == {"inside", "edge", "several", "no tokens at all"}
