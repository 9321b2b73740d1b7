"""One request gives the same latents on any number of ranks, in any layout."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from longtake.configs.request import ResolvedRequest
from longtake.parallel import ParallelDims
from tests.layouts import LAYOUTS, layout_name
from tests.ranks import RankGroups
from tests.rendering import (
    count_weights_read,
    denoiser_bytes,
    latents_on_one_rank,
    latents_on_ranks,
    request,
)

CFG_LAYOUTS = [
    ParallelDims(cfg_degree=2, ring_degree=ring_degree, ulysses_degree=ulysses_degree)
    for ring_degree, ulysses_degree in ((1, 1), (1, 2), (2, 1), (1, 3), (3, 1))
]

GUIDED: dict[str, Any] = dict(true_cfg_scale=3.5, negative_prompt="red dog.")

REQUESTS = [
    request(num_videos=2),
    request(height=48, width=80, num_frames=5, **GUIDED),  # 30 tokens; prompts of different lengths
    request(height=16, width=112, num_frames=1, prompt="cat"),  # 7 tokens
    request(height=16, width=16, num_frames=1, guidance_scale=1.0, flow_shift=3.0),  # 1 token
]


@pytest.mark.parametrize("dims", LAYOUTS[1:], ids=layout_name)
def test_every_layout_matches_one_rank(ranks: RankGroups, model: str, dims: ParallelDims) -> None:
    check(ranks, model, dims, REQUESTS)


@pytest.mark.parametrize("dims", CFG_LAYOUTS, ids=layout_name)
def test_concurrent_branches_match_one_rank(
    ranks: RankGroups, model: str, dims: ParallelDims
) -> None:
    guided = [each.model_copy(update=GUIDED) for each in REQUESTS]
    check(ranks, model, dims, guided)


@pytest.mark.parametrize("world_size", [2, 3])
def test_sharded_weights_give_the_same_latents_and_hold_one_shard(
    ranks: RankGroups, model: str, world_size: int
) -> None:
    dims = ParallelDims(ulysses_degree=world_size)
    whole = ranks.run(world_size, latents_on_ranks, model, REQUESTS, dims)
    split = ranks.run(world_size, latents_on_ranks, model, REQUESTS, dims, "float32", "split")
    for rank in range(world_size):
        for expected, latents in zip(whole[rank], split[rank], strict=True):
            np.testing.assert_allclose(latents, expected, rtol=0, atol=1e-5)
    total = ranks.run(world_size, denoiser_bytes, model, "resident")[0]
    held = ranks.run(world_size, denoiser_bytes, model, "split")
    assert sum(held) == total
    assert max(held) <= total / world_size * 1.02  # rows of small weights do not divide evenly


def test_weights_are_read_once_per_host(ranks: RankGroups, model: str) -> None:
    """Four ranks on two hosts: one rank of each reads."""
    read, same = zip(*ranks.run(4, count_weights_read, model, 2), strict=True)
    assert all(same)
    assert read[0] == read[2] > 0
    assert read[1] == read[3] == 0


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_close_on_three_ranks(ranks: RankGroups, model: str, dtype: str) -> None:
    dims = ParallelDims(ulysses_degree=3)
    expected = latents_on_one_rank(model, REQUESTS[0], dtype)
    for latents in ranks.run(3, latents_on_ranks, model, REQUESTS[:1], dims, dtype):
        assert latents[0].dtype == np.float32
        np.testing.assert_allclose(latents[0], expected, rtol=0, atol=5e-2)


def check(
    ranks: RankGroups, model: str, dims: ParallelDims, resolved: list[ResolvedRequest]
) -> None:
    """Check that all ranks of a layout return the latents of one rank."""
    answers = ranks.run(dims.world_size, latents_on_ranks, model, resolved, dims)
    for at, each in enumerate(resolved):
        expected = latents_on_one_rank(model, each)
        for latents in answers:
            np.testing.assert_allclose(latents[at], expected, rtol=0, atol=1e-4)
