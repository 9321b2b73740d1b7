"""Resumed renderings: bit-identical in the same layout, within 1e-4 in another."""

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
    image_request,
    latents_on_one_rank,
    request,
    resume,
    snapshot_states,
)

GUIDED: dict[str, Any] = dict(true_cfg_scale=3.5, negative_prompt="red dog.")
STEPS = 4
SMALL = request(height=48, width=80, num_frames=5, num_inference_steps=STEPS, num_videos=2)
OTHERS = [LAYOUTS[1], LAYOUTS[4], LAYOUTS[6], LAYOUTS[-3]]
"""Two, three, four and six ranks, with ring and Ulysses."""


def states(ranks: RankGroups, model: str, resolved: ResolvedRequest, dims: ParallelDims) -> Any:
    return ranks.run(dims.world_size, snapshot_states, model, resolved, dims, True)


@pytest.mark.parametrize("dims", OTHERS, ids=layout_name)
def test_resume_in_the_same_layout_is_bit_identical(
    ranks: RankGroups, model: str, dims: ParallelDims
) -> None:
    answers = states(ranks, model, SMALL, dims)
    whole, saved = answers[0]
    assert [state.steps_done for state in saved] == [1, 2, 3, STEPS]
    for state in saved:
        for latents in ranks.run(dims.world_size, resume, model, SMALL, dims, state):
            np.testing.assert_array_equal(latents, whole)


@pytest.mark.parametrize("dims", OTHERS, ids=layout_name)
def test_resume_in_another_layout(ranks: RankGroups, model: str, dims: ParallelDims) -> None:
    """From one rank to several, and back."""
    expected, one_rank_states = snapshot_states(model, SMALL, ONE_RANK, False)
    np.testing.assert_array_equal(expected, latents_on_one_rank(model, SMALL))
    for latents in ranks.run(dims.world_size, resume, model, SMALL, dims, one_rank_states[1]):
        np.testing.assert_allclose(latents, expected, rtol=0, atol=1e-4)
    saved = states(ranks, model, SMALL, dims)[0][1]
    resumed = resume(model, SMALL, ONE_RANK, saved[1], False)
    np.testing.assert_allclose(resumed, expected, rtol=0, atol=1e-4)


def test_concurrent_branches_resume_sequentially(ranks: RankGroups, model: str) -> None:
    resolved = SMALL.model_copy(update=GUIDED)
    concurrent = ParallelDims(cfg_degree=2, ulysses_degree=2)
    whole, saved = states(ranks, model, resolved, concurrent)[0]
    dims = ParallelDims(ulysses_degree=3)
    for latents in ranks.run(3, resume, model, resolved, dims, saved[2]):
        np.testing.assert_allclose(latents, whole, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["token_replace", "latent_concat"])
def test_resume_of_image_to_video(ranks: RankGroups, animators: dict[str, str], name: str) -> None:
    resolved = image_request(num_inference_steps=STEPS)
    dims = ParallelDims(ulysses_degree=2)
    whole, saved = states(ranks, animators[name], resolved, dims)[0]
    for latents in ranks.run(2, resume, animators[name], resolved, dims, saved[1]):
        np.testing.assert_array_equal(latents, whole)
    resumed = resume(animators[name], resolved, ONE_RANK, saved[1], False)
    np.testing.assert_allclose(resumed, whole, rtol=0, atol=1e-4)
