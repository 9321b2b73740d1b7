"""Weights in fewer bits, wherever they live and on any ranks: the latents of one rank."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import pytest

from longtake.configs.fields.weights import StorageDtype, WeightPlace
from longtake.parallel import ParallelDims
from tests.ranks import RankGroups
from tests.rendering import (
    ONE_RANK,
    Array,
    denoiser_bytes,
    latents_on_one_rank,
    latents_on_ranks,
    request,
)
from tests.wan_rendering import wan_request

STORAGES = pytest.mark.parametrize("storage", get_args(StorageDtype))
PLACES: tuple[WeightPlace, ...] = ("streamed", "disk")
DIMS = {1: ONE_RANK, 2: ParallelDims(ring_degree=2), 3: ParallelDims(ulysses_degree=3)}
EXPERTS: dict[str, Any] = dict(height=48, width=80, num_frames=5, num_inference_steps=4)


def latents_on(
    ranks: RankGroups, size: int, folder: str, place: WeightPlace, storage: StorageDtype
) -> list[Array]:
    """The latents of the request on each rank."""
    resolved = [request(num_inference_steps=2)]
    arguments = (folder, resolved, DIMS[size], "float32", place, storage)
    return [latents for (latents,) in ranks.run(size, latents_on_ranks, *arguments)]


@STORAGES
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_streamed_to_the_bit(model: str, storage: StorageDtype, dtype: str) -> None:
    resolved = request(num_inference_steps=2)
    expected = latents_on_one_rank(model, resolved, dtype, "resident", storage)
    for place in PLACES:
        found = latents_on_one_rank(model, resolved, dtype, place, storage)
        np.testing.assert_array_equal(found, expected)
    assert abs(expected - latents_on_one_rank(model, resolved, dtype)).max() > 1e-4


@STORAGES
@pytest.mark.parametrize("size", [2, 3])
def test_split_and_whole_on_several_ranks(
    ranks: RankGroups, model: str, storage: StorageDtype, size: int
) -> None:
    resolved = request(num_inference_steps=2)
    expected = latents_on_one_rank(model, resolved, storage=storage)
    whole = latents_on(ranks, size, model, "resident", storage)
    split = latents_on(ranks, size, model, "split", storage)
    for latents in (*whole, *split):
        np.testing.assert_allclose(latents, expected, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(split, whole)


def test_streamed_on_several_ranks(ranks: RankGroups, model: str) -> None:
    whole = latents_on(ranks, 2, model, "resident", "float8")
    for place in PLACES:
        np.testing.assert_array_equal(latents_on(ranks, 2, model, place, "float8"), whole)


@STORAGES
@pytest.mark.parametrize("size", [2, 3])
def test_each_rank_holds_its_share(
    ranks: RankGroups, model: str, storage: StorageDtype, size: int
) -> None:
    total = ranks.run(size, denoiser_bytes, model, "resident", storage)[0]
    held = ranks.run(size, denoiser_bytes, model, "split", storage)
    assert sum(held) == total
    assert max(held) <= total / size * 1.03  # rows of small weights do not divide evenly
    # The tiny model is in float32, and a quarter of it is outside of blocks.
    assert total < 0.55 * ranks.run(size, denoiser_bytes, model, "resident")[0]


@pytest.mark.parametrize("place", ["split", "streamed"])
def test_two_experts(ranks: RankGroups, wan: Callable[[str], str], place: WeightPlace) -> None:
    """Wan keeps weights in float32 that are in blocks and not of linear layers."""
    folder = wan("wan22-t2v")
    resolved = wan_request(folder, **EXPERTS)
    expected = latents_on_one_rank(folder, resolved, "float32", "resident", "nf4")
    dims = ParallelDims(ulysses_degree=2)
    arguments = (folder, [resolved], dims, "float32", place, "nf4")
    for (latents,) in ranks.run(2, latents_on_ranks, *arguments):
        np.testing.assert_allclose(latents, expected, rtol=0, atol=1e-5)
    half = latents_on_one_rank(folder, resolved, "bfloat16", "resident", "nf4")
    streamed = latents_on_one_rank(folder, resolved, "bfloat16", "streamed", "nf4")
    np.testing.assert_array_equal(streamed, half)
