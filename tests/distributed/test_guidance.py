"""Passes of a step on one rank and spread over the cfg axis give the same velocity."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import nn

from longtake.parallel import ParallelDims
from longtake.pipelines.layout import VideoLayout
from longtake.pipelines.runtime.guidance import Guidance, Sum, classifier_free
from longtake.pipelines.runtime.stepper import Step
from longtake.pipelines.spec import LatentGrid
from tests.layouts import layout_name
from tests.ranks import RankGroups, mesh_of

GRID = LatentGrid((2, 3, 3, 4, 6), (1, 2, 2))
STEP = Step(0, torch.tensor(700.0), 700.0)


class Scaled(nn.Module):
    """Multiplies the tokens by the inputs of the pass."""

    def forward(self, tokens: torch.Tensor, step: Step, inputs: float) -> torch.Tensor:
        return tokens * inputs + step.value


def rescaled(velocities: Sequence[torch.Tensor], step: Step, total: Sum) -> torch.Tensor:
    """A sum of all passes, divided by the mean square over the whole video."""
    guided = torch.stack([each * (number + 1) for number, each in enumerate(velocities)]).sum(0)
    squares = total(guided.square().sum(dim=(1, 2)))
    count = total(torch.tensor([float(guided.shape[1])]))
    return guided / (squares / count)[:, None, None].sqrt()


def velocity(num_passes: int, dims: ParallelDims, alone: bool = False) -> torch.Tensor:
    """The guided velocity of the whole video."""
    layout = VideoLayout.of(GRID, dims, None if alone else mesh_of(dims))
    tokens = layout.split(GRID.noise(0))
    guidance = Guidance([float(number + 2) for number in range(num_passes)], rescaled)
    return layout.gather(guidance.velocity(Scaled(), tokens, STEP, layout))


LAYOUTS = [
    (2, ParallelDims(cfg_degree=2)),
    (2, ParallelDims(cfg_degree=2, ulysses_degree=2)),
    (4, ParallelDims(cfg_degree=2, ring_degree=2)),
    (4, ParallelDims(cfg_degree=4)),
    (3, ParallelDims(cfg_degree=3)),
    (3, ParallelDims(ring_degree=2, ulysses_degree=2)),
    (1, ParallelDims(ulysses_degree=5)),
]


@pytest.mark.parametrize(
    ("num_passes", "dims"), LAYOUTS, ids=[f"{n}-{layout_name(dims)}" for n, dims in LAYOUTS]
)
def test_passes_give_the_same_velocity_on_all_layouts(
    ranks: RankGroups, num_passes: int, dims: ParallelDims
) -> None:
    expected = velocity(num_passes, ParallelDims(), alone=True)
    found = ranks.run(dims.world_size, velocity, num_passes, dims)
    for each in found:
        torch.testing.assert_close(each, expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(each, found[0], rtol=0, atol=0)


def test_the_scale_of_classifier_free_guidance_may_depend_on_the_step() -> None:
    combine = classifier_free(lambda step: 3.0 if step.value >= 500 else 1.0)
    passes = torch.full((1, 2, 3), 2.0), torch.full((1, 2, 3), 1.0)
    assert combine(passes, STEP, lambda x: x).unique().tolist() == [4.0]
    late = Step(1, torch.tensor(400.0), 400.0)
    assert combine(passes, late, lambda x: x).unique().tolist() == [2.0]
