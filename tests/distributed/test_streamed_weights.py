"""Streamed weights give the latents of resident ones to the bit, in every family and layout."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from longtake.configs.fields.weights import WeightPlace
from longtake.configs.request import ResolvedRequest
from longtake.parallel import ParallelDims
from tests.layouts import layout_name
from tests.ranks import RankGroups
from tests.rendering import (
    ONE_RANK,
    latents_on_one_rank,
    latents_on_ranks,
    request,
    resume,
    snapshot_states,
)
from tests.wan_rendering import KINDS, wan_request

Folder = Callable[[str], str]

PLACES: tuple[WeightPlace, ...] = ("streamed", "disk")
LAYOUTS = [
    ParallelDims(ulysses_degree=2),
    ParallelDims(ring_degree=3),
    ParallelDims(ring_degree=2, ulysses_degree=2),
    ParallelDims(cfg_degree=2, ulysses_degree=2),
]


def small(wan: Folder, kind: str) -> tuple[str, ResolvedRequest]:
    """Folder and request of a few tokens; the experts of Wan 2.2 take two steps each."""
    size = dict(height=48, width=80) if "ti2v" not in kind else dict(height=96, width=160)
    folder = wan(kind.partition(" ")[0])
    return folder, wan_request(folder, KINDS[kind], num_frames=5, num_inference_steps=4, **size)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_wan_on_one_rank(wan: Folder, kind: str, dtype: str) -> None:
    folder, resolved = small(wan, kind)
    expected = latents_on_one_rank(folder, resolved, dtype)
    for place in PLACES:
        np.testing.assert_array_equal(latents_on_one_rank(folder, resolved, dtype, place), expected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_hunyuan_video_on_one_rank(model: str, dtype: str) -> None:
    resolved = request(num_inference_steps=2)
    expected = latents_on_one_rank(model, resolved, dtype)
    for place in PLACES:
        np.testing.assert_array_equal(latents_on_one_rank(model, resolved, dtype, place), expected)


@pytest.mark.parametrize("dims", LAYOUTS, ids=layout_name)
@pytest.mark.parametrize("kind", ["hunyuan", "wan21-i2v", "wan22-t2v"])
def test_every_layout(
    ranks: RankGroups, model: str, wan: Folder, kind: str, dims: ParallelDims
) -> None:
    folder, resolved = model, request(num_inference_steps=2, true_cfg_scale=3.0)
    if kind != "hunyuan":
        folder, resolved = small(wan, kind)
    size = dims.world_size
    expected = ranks.run(size, latents_on_ranks, folder, [resolved], dims)
    for place in PLACES:
        found = ranks.run(size, latents_on_ranks, folder, [resolved] * 2, dims, "float32", place)
        for (resident,), both in zip(expected, found, strict=True):
            for latents in both:
                np.testing.assert_array_equal(latents, resident)


@pytest.mark.parametrize("kind", ["hunyuan", "wan22-t2v"])
def test_a_snapshot_of_one_place_goes_on_in_another(
    ranks: RankGroups, model: str, wan: Folder, kind: str
) -> None:
    folder, resolved = model, request(num_inference_steps=3)
    if kind != "hunyuan":
        folder, resolved = small(wan, kind)
    dims = ParallelDims(ulysses_degree=2)
    whole, saved = ranks.run(2, snapshot_states, folder, resolved, dims, True, "streamed")[0]
    for state, place in zip(saved, ("resident", "disk", "streamed"), strict=False):
        for latents in ranks.run(2, resume, folder, resolved, dims, state, True, place):
            np.testing.assert_array_equal(latents, whole)
    for latents in ranks.run(2, resume, folder, resolved, dims, saved[0], True, "split"):
        np.testing.assert_allclose(latents, whole, rtol=0, atol=1e-5)
    alone = resume(folder, resolved, ONE_RANK, saved[0], False, "disk")
    np.testing.assert_allclose(alone, whole, rtol=0, atol=1e-4)
