"""The planner predicts to the byte what each rank sends in one step of a Wan."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from longtake.configs.hardware import load_hardware
from longtake.engine.planning.plan_input import PlanInput
from longtake.engine.planning.prediction import predict
from longtake.engine.planning.weights.places import Placement
from longtake.parallel import ParallelDims
from longtake.pipelines import registry
from longtake.pipelines.loading.checkpoint import Checkpoint
from tests.distributed.test_rendering_traffic import step_traffic
from tests.layouts import layout_name
from tests.ranks import RankGroups
from tests.wan_rendering import wan_request

CASES = [
    (ParallelDims(ulysses_degree=2), False, {}),
    (ParallelDims(ring_degree=3), False, {"guidance_scale": 1.0}),
    (ParallelDims(cfg_degree=2, ulysses_degree=2), False, {}),
    (ParallelDims(ring_degree=2, ulysses_degree=2), False, {"num_videos": 2}),
    (ParallelDims(ulysses_degree=3), True, {}),
    (ParallelDims(cfg_degree=2), True, {}),
]


@pytest.mark.parametrize("kind", ["wan21-t2v", "wan22-t2v"])
@pytest.mark.parametrize(
    ("dims", "split_weights", "fields"),
    CASES,
    ids=[f"{layout_name(dims)}{'-sharded' if shard else ''}" for dims, shard, _ in CASES],
)
def test_predicted_bytes_equal_those_sent(
    ranks: RankGroups,
    wan: Callable[[str], str],
    kind: str,
    dims: ParallelDims,
    split_weights: bool,
    fields: dict[str, Any],
) -> None:
    """Text is in no exchange. A step of two experts gathers the weights of one."""
    folder = wan(kind)
    request = wan_request(folder, **fields)
    spec = registry.inspect(Checkpoint.open(folder), weights=False)
    plan_input = PlanInput(
        spec=spec,
        hardware=load_hardware("h100"),
        request=request,
        dtype="float32",
        vae_dtype="float32",
        text_tokens=spec.text_tokens(request),
    )
    step = step_traffic(ranks, folder, dims, split_weights, rendering=request)
    found = tuple(sent for sent, _, _ in step)
    placement = Placement("split" if split_weights else "resident")
    assert predict(plan_input, dims, placement).step_bytes == found
    assert min(found) > 1000
