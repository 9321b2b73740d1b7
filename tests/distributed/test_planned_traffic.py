"""The planner predicts to the byte what each rank sends in one step."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest

from longtake.configs.hardware import load_hardware
from longtake.engine.planning.plan_input import PlanInput
from longtake.engine.planning.prediction import predict
from longtake.engine.planning.weights.places import Placement
from longtake.parallel import ParallelDims, TokenShards
from longtake.parallel.attention.traffic import AttentionTraffic
from longtake.pipelines import registry
from longtake.pipelines.loading.checkpoint import Checkpoint
from tests import tiny
from tests.distributed.test_rendering_traffic import step_traffic
from tests.distributed.test_traffic import expected_bytes
from tests.layouts import HEADS, LAYOUTS, layout_name
from tests.ranks import RankGroups
from tests.rendering import image_request, request

GUIDED: dict[str, Any] = dict(true_cfg_scale=2.0, negative_prompt="a dog runs on the sand, fast")
"""The negative prompt has as many tokens as the prompt."""

PARALLEL_BRANCHES = [
    ParallelDims(cfg_degree=2),
    ParallelDims(cfg_degree=2, ulysses_degree=2),
    ParallelDims(cfg_degree=2, ring_degree=3),
]


def predicted(
    model: str, dims: ParallelDims, split_weights: bool = False, **changes: Any
) -> tuple[int, ...]:
    """Bytes that each rank sends in one step, by arithmetic on the configuration."""
    plan_input = PlanInput(
        spec=registry.inspect(Checkpoint.open(model, configs_only=True), weights=False),
        hardware=load_hardware("h100"),
        request=request(**changes),
        dtype="float32",
        vae_dtype="float32",
        text_tokens=tiny.num_text_tokens(request(**changes).prompt),
    )
    placement = Placement("split" if split_weights else "resident")
    return predict(plan_input, dims, placement).step_bytes


def sent(
    ranks: RankGroups, model: str, dims: ParallelDims, split_weights: bool = False, **changes: Any
) -> tuple[int, ...]:
    """Bytes that each rank sends in one step, as counted."""
    step = step_traffic(ranks, model, dims, split_weights, **changes)
    return tuple(in_one_step for in_one_step, _, _ in step)


@pytest.mark.parametrize("dims", LAYOUTS, ids=layout_name)
def test_predicted_attention_equals_the_formula(dims: ParallelDims) -> None:
    for tokens, (num_heads, num_kv_heads) in product((1, 13, 29, 118_873), HEADS):
        shards = TokenShards.even(tokens, dims)
        traffic = AttentionTraffic(dims, shards, num_heads, num_kv_heads, 2 * 8 * 4)
        heads = (num_heads, num_kv_heads)
        for rank in range(dims.world_size):
            expected = expected_bytes(dims, rank, shards.counts, shards.counts, heads, 2 * 8 * 4)
            assert traffic.bytes_sent_by(rank) == expected


@pytest.mark.parametrize("dims", LAYOUTS, ids=layout_name)
def test_predicted_bytes_equal_those_sent_in_every_layout(
    ranks: RankGroups, model: str, dims: ParallelDims
) -> None:
    found = sent(ranks, model, dims)
    assert predicted(model, dims) == found
    assert len(found) == dims.world_size and (dims.world_size == 1 or min(found) > 1000)


def test_sizes_and_prompts_that_do_not_divide(ranks: RankGroups, model: str) -> None:
    changes: dict[str, Any] = dict(height=80, width=112, num_frames=5, prompt="blue grass")
    dims = ParallelDims(ring_degree=2, ulysses_degree=2)
    assert predicted(model, dims, **changes) == sent(ranks, model, dims, **changes)


@pytest.mark.parametrize(
    "dims", [*PARALLEL_BRANCHES, ParallelDims(ulysses_degree=2)], ids=layout_name
)
def test_true_cfg_in_parallel_and_in_turn(
    ranks: RankGroups, model: str, dims: ParallelDims
) -> None:
    negative = tiny.num_text_tokens(GUIDED["negative_prompt"])
    assert negative == tiny.num_text_tokens(request().prompt)
    found = sent(ranks, model, dims, **GUIDED)
    assert predicted(model, dims, **GUIDED) == found
    assert predicted(model, ParallelDims(ulysses_degree=dims.world_size)) != found


def test_a_batch_of_two_videos(ranks: RankGroups, model: str) -> None:
    dims = ParallelDims(ring_degree=2, ulysses_degree=2)
    assert predicted(model, dims, num_videos=2) == sent(ranks, model, dims, num_videos=2)
    dims = ParallelDims(cfg_degree=2)
    guided = {**GUIDED, "num_videos": 2}
    assert predicted(model, dims, **guided) == sent(ranks, model, dims, **guided)


@pytest.mark.parametrize(
    "dims", [ParallelDims(ulysses_degree=2), ParallelDims(ring_degree=3)], ids=layout_name
)
def test_sharded_weights(ranks: RankGroups, model: str, dims: ParallelDims) -> None:
    found = sent(ranks, model, dims, split_weights=True)
    assert predicted(model, dims, split_weights=True) == found
    assert min(found) > 2 * max(predicted(model, dims))


def test_sharded_weights_with_true_cfg(ranks: RankGroups, model: str) -> None:
    """Branches in turn gather them twice per step, parallel branches once."""
    for dims in (ParallelDims(ulysses_degree=2), ParallelDims(cfg_degree=2)):
        found = sent(ranks, model, dims, split_weights=True, **GUIDED)
        assert predicted(model, dims, split_weights=True, **GUIDED) == found


@pytest.mark.parametrize("dims", [ParallelDims(ulysses_degree=2), ParallelDims(ring_degree=3)])
@pytest.mark.parametrize("conditioning", ["token_replace", "latent_concat"])
def test_image_to_video(
    ranks: RankGroups, animators: dict[str, str], conditioning: str, dims: ParallelDims
) -> None:
    """A fourth or a half of the picture's sixteen tokens is counted."""
    folder, rendering = animators[conditioning], image_request(prompt="a cat runs " * 20)
    spec = registry.inspect(Checkpoint.open(folder, configs_only=True), weights=False)
    picture_tokens = {"token_replace": 4, "latent_concat": 8}[conditioning]
    assert (
        spec.text_tokens(rendering) == tiny.MAX_TOKENS - 4 + picture_tokens
    )  # its last four are dropped
    plan_input = PlanInput(
        spec=spec,
        hardware=load_hardware("h100"),
        request=rendering,
        dtype="float32",
        vae_dtype="float32",
        text_tokens=spec.text_tokens(rendering),
    )
    step = step_traffic(ranks, folder, dims, rendering=rendering)
    assert predict(plan_input, dims).step_bytes == tuple(sent for sent, _, _ in step)
