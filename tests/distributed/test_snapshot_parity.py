"""A rendering that was interrupted, and goes on: in the same layout bit by bit the same, in another
within the tolerance of layouts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from longtake.configs.request import ResolvedRequest
from longtake.parallel import ParallelDims
from tests.layouts import LAYOUTS, layout_name
from tests.ranks import RankGroups
from tests.rendering import (
    ONE_RANK,
    gone_on,
    image_request,
    latents_of_one,
    request,
    states_of,
)

GUIDED: dict[str, Any] = dict(true_cfg_scale=3.5, negative_prompt="red dog.")
STEPS = 4
SMALL = request(height=48, width=80, num_frames=5, num_inference_steps=STEPS, num_videos=2)
OTHERS = [LAYOUTS[1], LAYOUTS[4], LAYOUTS[6], LAYOUTS[-3]]
"""Two, three, four and six ranks, of ring and Ulysses."""


def states(ranks: RankGroups, model: str, asked: ResolvedRequest, dims: ParallelDims) -> Any:
    return ranks.run(dims.world_size, states_of, model, asked, dims, True)


@pytest.mark.parametrize("dims", OTHERS, ids=layout_name)
def test_the_same_layout_goes_on_bit_by_bit(
    ranks: RankGroups, model: str, dims: ParallelDims
) -> None:
    answers = states(ranks, model, SMALL, dims)
    whole, kept = answers[0]
    assert [state.steps_done for state in kept] == [1, 2, 3, STEPS]
    for state in kept:
        for latents in ranks.run(dims.world_size, gone_on, model, SMALL, dims, state):
            np.testing.assert_array_equal(latents, whole)


@pytest.mark.parametrize("dims", OTHERS, ids=layout_name)
def test_any_layout_goes_on_where_another_stopped(
    ranks: RankGroups, model: str, dims: ParallelDims
) -> None:
    """From one rank to many, and back."""
    expected, of_one = states_of(model, SMALL, ONE_RANK, False)
    np.testing.assert_array_equal(expected, latents_of_one(model, SMALL))
    for latents in ranks.run(dims.world_size, gone_on, model, SMALL, dims, of_one[1]):
        np.testing.assert_allclose(latents, expected, rtol=0, atol=1e-4)
    of_many = states(ranks, model, SMALL, dims)[0][1]
    back = gone_on(model, SMALL, ONE_RANK, of_many[1], False)
    np.testing.assert_allclose(back, expected, rtol=0, atol=1e-4)


def test_branches_side_by_side_go_on_in_turn(ranks: RankGroups, model: str) -> None:
    asked = SMALL.model_copy(update=GUIDED)
    side_by_side = ParallelDims(cfg_degree=2, ulysses_degree=2)
    whole, kept = states(ranks, model, asked, side_by_side)[0]
    dims = ParallelDims(ulysses_degree=3)
    for latents in ranks.run(3, gone_on, model, asked, dims, kept[2]):
        np.testing.assert_allclose(latents, whole, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["token_replace", "latent_concat"])
def test_a_picture_goes_on_moving(ranks: RankGroups, animators: dict[str, str], name: str) -> None:
    asked = image_request(num_inference_steps=STEPS)
    dims = ParallelDims(ulysses_degree=2)
    whole, kept = states(ranks, animators[name], asked, dims)[0]
    for latents in ranks.run(2, gone_on, animators[name], asked, dims, kept[1]):
        np.testing.assert_array_equal(latents, whole)
    back = gone_on(animators[name], asked, ONE_RANK, kept[1], False)
    np.testing.assert_allclose(back, whole, rtol=0, atol=1e-4)
