"""A Wan gives the same latents on any number of ranks, in any layout, and after a resume."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from longtake.configs.request import ResolvedRequest
from longtake.parallel import ParallelDims
from tests.layouts import LAYOUTS, layout_name
from tests.ranks import RankGroups
from tests.rendering import (
    ONE_RANK,
    denoiser_bytes,
    latents_on_one_rank,
    latents_on_ranks,
    resume,
    snapshot_states,
    traffic,
)
from tests.wan_rendering import KINDS, wan_request

STEPS = 4
CFG_LAYOUTS = [
    ParallelDims(cfg_degree=2, ring_degree=ring_degree, ulysses_degree=ulysses_degree)
    for ring_degree, ulysses_degree in ((1, 1), (1, 2), (3, 1))
]
Folder = Callable[[str], str]


def small(wan: Folder, kind: str, **changes: Any) -> tuple[str, ResolvedRequest]:
    """Folder and request: 15 tokens of one or two videos, which no even number of ranks divides."""
    folder = wan(kind.partition(" ")[0])
    size = dict(height=48, width=80) if "ti2v" not in kind else dict(height=96, width=160)
    fields: dict[str, Any] = dict(num_frames=5, num_inference_steps=2, **size)
    return folder, wan_request(folder, KINDS[kind], **{**fields, **changes})


@pytest.mark.parametrize("dims", [*LAYOUTS[1:], *CFG_LAYOUTS], ids=layout_name)
@pytest.mark.parametrize("kind", KINDS)
def test_every_layout_matches_one_rank(
    ranks: RankGroups, wan: Folder, kind: str, dims: ParallelDims
) -> None:
    folder, resolved = small(wan, kind, num_videos=2 if dims.world_size == 3 else 1)
    expected = latents_on_one_rank(folder, resolved)
    for (latents,) in ranks.run(dims.world_size, latents_on_ranks, folder, [resolved], dims):
        np.testing.assert_allclose(latents, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("dims", [LAYOUTS[1], LAYOUTS[4]], ids=layout_name)
@pytest.mark.parametrize("kind", ["wan21-i2v", "wan22-t2v"])
def test_sharded_weights_give_the_same_latents(
    ranks: RankGroups, wan: Folder, kind: str, dims: ParallelDims
) -> None:
    folder, resolved = small(wan, kind)
    size = dims.world_size
    whole = ranks.run(size, latents_on_ranks, folder, [resolved], dims)
    split = ranks.run(size, latents_on_ranks, folder, [resolved], dims, "float32", "split")
    for (expected,), (latents,) in zip(whole, split, strict=True):
        np.testing.assert_allclose(latents, expected, rtol=0, atol=1e-5)
    total = ranks.run(size, denoiser_bytes, folder, "resident")[0]
    held = ranks.run(size, denoiser_bytes, folder, "split")
    assert sum(held) == total and max(held) < 1.2 * total / size


def test_a_step_gathers_the_weights_of_its_expert_alone(ranks: RankGroups, wan: Folder) -> None:
    """The reported traffic of sharded weights is what torch.distributed sends."""
    folder, resolved = small(wan, "wan22-t2v", num_inference_steps=STEPS)
    dims = ParallelDims(ulysses_degree=2)
    for place in ("resident", "split", "streamed"):
        sent, _, by_stage = ranks.run(2, traffic, folder, resolved, dims, place)[0]
        own = {name: size for name, size in by_stage.items() if name != "weights"}
        weights = by_stage["weights"]
        assert (weights > 0) == (place == "split")
        assert sent == sum(own.values()) + weights


@pytest.mark.parametrize("kind", ["wan21-flf2v", "wan22-t2v", "wan22-ti2v picture"])
@pytest.mark.parametrize("sampler", ["unipc", "euler"])
def test_resume_after_each_step_is_bit_identical(
    ranks: RankGroups, wan: Folder, kind: str, sampler: str
) -> None:
    folder, resolved = small(wan, kind, num_inference_steps=STEPS, sampler=sampler)
    dims = ParallelDims(ring_degree=1, ulysses_degree=3)
    whole, saved = ranks.run(3, snapshot_states, folder, resolved, dims, True)[0]
    assert [state.steps_done for state in saved] == [1, 2, 3, STEPS]
    for state in saved:
        for latents in ranks.run(3, resume, folder, resolved, dims, state):
            np.testing.assert_array_equal(latents, whole)
    other = ParallelDims(cfg_degree=2)
    for latents in ranks.run(2, resume, folder, resolved, other, saved[1]):
        np.testing.assert_allclose(latents, whole, rtol=0, atol=1e-4)
    resumed = resume(folder, resolved, ONE_RANK, saved[2], False)
    np.testing.assert_allclose(resumed, whole, rtol=0, atol=1e-4)
