"""Wan's velocity on several ranks equals that on one, with whole and with sharded experts."""

from __future__ import annotations

import pytest
import torch
from torch.distributed.tensor import DTensor

from benchmarks.traffic import TrafficMeter
from longtake.parallel import ParallelDims
from longtake.pipelines.loading.weights import all_gather_bytes, shard_module
from longtake.pipelines.models.wan.transformer.denoiser import WanDenoiser
from tests.layouts import layout_name
from tests.ranks import RankGroups
from tests.rendering import world
from tests.wan_denoising import SIZES, Case, cases, denoiser, new_denoiser, velocity

ONE_RANK = ParallelDims()

LAYOUTS = [
    ParallelDims(ulysses_degree=2),
    ParallelDims(ring_degree=2),
    ParallelDims(ulysses_degree=3),
    ParallelDims(ring_degree=3),
    ParallelDims(ring_degree=2, ulysses_degree=2),
    ParallelDims(ring_degree=2, ulysses_degree=3),
]
"""Three heads and 2, 18 and 45 tokens: uneven shares, and ranks without tokens or heads."""


@pytest.mark.parametrize("dims", LAYOUTS, ids=layout_name)
def test_every_layout_matches_one_rank(ranks: RankGroups, dims: ParallelDims) -> None:
    given = cases(*SIZES)
    expected = velocities(given, ONE_RANK)
    for found in ranks.run(dims.world_size, velocities, given, dims):
        for case, one, many in zip(given, expected, found, strict=True):
            assert (one - many).abs().max() < 1e-5, case


@pytest.mark.parametrize("dims", LAYOUTS[:4], ids=layout_name)
def test_sharded_experts_match_whole_ones_and_gather_only_the_running_one(
    ranks: RankGroups, dims: ParallelDims
) -> None:
    ranks.run(dims.world_size, check_sharded, dims)


def velocities(given: list[Case], dims: ParallelDims) -> list[torch.Tensor]:
    return [velocity(case, dims) for case in given]


def check_sharded(dims: ParallelDims) -> None:
    """Each expert is a root of its own; early and late steps alternate between them."""
    whole, sharded = denoiser("wan22-i2v"), new_denoiser("wan22-i2v")
    for name in sharded.experts:
        shard_module(sharded.expert(name), sharded.expert(name).blocks, world())
    assert all(isinstance(weights, DTensor) for weights in sharded.parameters())
    for timestep in (980, 700, 951):
        case = Case("wan22-i2v", SIZES["18 tokens"], timestep)
        expected, sent = measured(case, dims, whole)
        found, sent_sharded = measured(case, dims, sharded)
        assert torch.equal(found, expected)
        assert sent_sharded - sent == all_gather_bytes(sharded.running_module(case.step))


def measured(case: Case, dims: ParallelDims, model: WanDenoiser) -> tuple[torch.Tensor, int]:
    """The velocity, and the bytes that this rank sent for it."""
    with TrafficMeter() as meter:
        return velocity(case, dims, model), meter.bytes_sent
