"""The planner says to the byte what each rank hands to torch.distributed in one step."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest

from longtake.configs.hardware import load_hardware
from longtake.engine.planning.plan_input import PlanInput
from longtake.engine.planning.prediction import predict
from longtake.parallel import ParallelDims, TokenShards
from longtake.parallel.traffic import AttentionTraffic
from longtake.pipelines import registry
from longtake.pipelines.checkpoint import Checkpoint
from tests import tiny
from tests.distributed.test_rendering_traffic import a_step
from tests.distributed.test_traffic import expected_bytes
from tests.layouts import HEADS, LAYOUTS, layout_name
from tests.ranks import RankGroups
from tests.rendering import image_request, request

GUIDED: dict[str, Any] = dict(true_cfg_scale=2.0, negative_prompt="a dog runs on the sand, fast")
"""As many tokens as the prompt has."""

SIDE_BY_SIDE = [
    ParallelDims(cfg_degree=2),
    ParallelDims(cfg_degree=2, ulysses_degree=2),
    ParallelDims(cfg_degree=2, ring_degree=3),
]


def predicted(
    model: str, dims: ParallelDims, shard_weights: bool = False, **changes: Any
) -> tuple[int, ...]:
    """Bytes that each rank sends in one step, by arithmetic on the configuration."""
    setting = PlanInput(
        spec=registry.inspect(Checkpoint.open(model, configs_only=True), weights=False),
        hardware=load_hardware("h100"),
        request=request(**changes),
        dtype="float32",
        vae_dtype="float32",
        text_tokens=tiny.num_text_tokens(request(**changes).prompt),
    )
    return predict(setting, dims, shard_weights=shard_weights).step_bytes


def sent(
    ranks: RankGroups, model: str, dims: ParallelDims, shard_weights: bool = False, **changes: Any
) -> tuple[int, ...]:
    """The same, counted."""
    step = a_step(ranks, model, dims, shard_weights, **changes)
    return tuple(in_one_step for in_one_step, _, _ in step)


@pytest.mark.parametrize("dims", LAYOUTS, ids=layout_name)
def test_attention_by_arithmetic_alone(dims: ParallelDims) -> None:
    """Any heads, shared by groups of queries, none on some ranks; any tokens."""
    for tokens, (num_heads, num_kv_heads) in product((1, 13, 29, 118_873), HEADS):
        shards = TokenShards.even(tokens, dims)
        traffic = AttentionTraffic(dims, shards, num_heads, num_kv_heads, 2 * 8 * 4)
        heads = (num_heads, num_kv_heads)
        for rank in range(dims.world_size):
            expected = expected_bytes(dims, rank, shards.counts, shards.counts, heads, 2 * 8 * 4)
            assert traffic.bytes_sent_by(rank) == expected


@pytest.mark.parametrize("dims", LAYOUTS, ids=layout_name)
def test_every_layout(ranks: RankGroups, model: str, dims: ParallelDims) -> None:
    found = sent(ranks, model, dims)
    assert predicted(model, dims) == found
    assert len(found) == dims.world_size and (dims.world_size == 1 or min(found) > 1000)


def test_sizes_and_prompts_that_divide_by_nothing(ranks: RankGroups, model: str) -> None:
    changes: dict[str, Any] = dict(height=80, width=112, num_frames=5, prompt="blue grass")
    dims = ParallelDims(ring_degree=2, ulysses_degree=2)
    assert predicted(model, dims, **changes) == sent(ranks, model, dims, **changes)


@pytest.mark.parametrize("dims", [*SIDE_BY_SIDE, ParallelDims(ulysses_degree=2)], ids=layout_name)
def test_true_cfg_side_by_side_and_in_turn(
    ranks: RankGroups, model: str, dims: ParallelDims
) -> None:
    negative = tiny.num_text_tokens(GUIDED["negative_prompt"])
    assert negative == tiny.num_text_tokens(request().prompt)
    found = sent(ranks, model, dims, **GUIDED)
    assert predicted(model, dims, **GUIDED) == found
    assert predicted(model, ParallelDims(ulysses_degree=dims.world_size)) != found


def test_two_videos(ranks: RankGroups, model: str) -> None:
    dims = ParallelDims(ring_degree=2, ulysses_degree=2)
    assert predicted(model, dims, num_videos=2) == sent(ranks, model, dims, num_videos=2)
    dims = ParallelDims(cfg_degree=2)
    guided = {**GUIDED, "num_videos": 2}
    assert predicted(model, dims, **guided) == sent(ranks, model, dims, **guided)


@pytest.mark.parametrize(
    "dims", [ParallelDims(ulysses_degree=2), ParallelDims(ring_degree=3)], ids=layout_name
)
def test_split_weights(ranks: RankGroups, model: str, dims: ParallelDims) -> None:
    found = sent(ranks, model, dims, shard_weights=True)
    assert predicted(model, dims, shard_weights=True) == found
    assert min(found) > 2 * max(predicted(model, dims))


def test_split_weights_of_branches(ranks: RankGroups, model: str) -> None:
    """In turn they are fetched twice a step, side by side once."""
    for dims in (ParallelDims(ulysses_degree=2), ParallelDims(cfg_degree=2)):
        found = sent(ranks, model, dims, shard_weights=True, **GUIDED)
        assert predicted(model, dims, shard_weights=True, **GUIDED) == found


@pytest.mark.parametrize("dims", [ParallelDims(ulysses_degree=2), ParallelDims(ring_degree=3)])
@pytest.mark.parametrize("conditioning", ["token_replace", "latent_concat"])
def test_image_to_video(
    ranks: RankGroups, animators: dict[str, str], conditioning: str, dims: ParallelDims
) -> None:
    """The picture's tokens are counted, a fourth or a half of the sixteen."""
    folder, asked = animators[conditioning], image_request(prompt="a cat runs " * 20)
    spec = registry.inspect(Checkpoint.open(folder, configs_only=True), weights=False)
    of_picture = {"token_replace": 4, "latent_concat": 8}[conditioning]
    assert spec.text_tokens(asked) == tiny.MAX_TOKENS - 4 + of_picture  # its last four are dropped
    setting = PlanInput(
        spec=spec,
        hardware=load_hardware("h100"),
        request=asked,
        dtype="float32",
        vae_dtype="float32",
        text_tokens=spec.text_tokens(asked),
    )
    step = a_step(ranks, folder, dims, asked=asked)
    assert predict(setting, dims).step_bytes == tuple(sent for sent, _, _ in step)
