"""Traffic of a denoising step: attention, one velocity, one flag, and no gather."""

from __future__ import annotations

from typing import Any

import pytest

from longtake.configs.request import ResolvedRequest
from longtake.parallel import ParallelDims, TokenShards
from tests import tiny
from tests.distributed.test_traffic import expected_bytes
from tests.layouts import layout_name
from tests.ranks import RankGroups
from tests.rendering import communication_order, denoiser_bytes, request, traffic

BLOCKS = 4
VIDEO_TOKENS = 3 * 2 * 3  # 9 frames of 32 x 48
TEXT_TOKENS = tiny.num_text_tokens(request().prompt)
TOKEN_BYTES = 4 * 2 * 2 * 4  # channels x patch x float32
GUIDED: dict[str, Any] = dict(true_cfg_scale=2.0, negative_prompt="a dog runs on the sand, fast")

LAYOUTS = [
    ParallelDims(ulysses_degree=2),
    ParallelDims(ring_degree=3),
    ParallelDims(ring_degree=2, ulysses_degree=2),
    ParallelDims(ulysses_degree=5),
]


def step_traffic(
    ranks: RankGroups,
    model: str,
    dims: ParallelDims,
    split_weights: bool = False,
    rendering: ResolvedRequest | None = None,
    **changes: Any,
) -> list[tuple[int, dict[str, int], int]]:
    """Bytes, calls and reported bytes of one step on each rank: a third of five steps minus two."""
    two, five = (
        ranks.run(
            dims.world_size,
            traffic,
            model,
            (rendering or request(**changes)).model_copy(update={"num_inference_steps": steps}),
            dims,
            "split" if split_weights else "resident",
        )
        for steps in (2, 5)
    )
    steps = []
    for (few, few_calls, few_reported), (many, many_calls, many_reported) in zip(
        two, five, strict=True
    ):
        calls = {
            name: difference // 3
            for name in many_calls
            if (difference := many_calls[name] - few_calls[name])
        }
        assert (many - few) % 3 == 0
        reported = sum(many_reported[at] - few_reported[at] for at in ("denoising", "weights")) // 3
        steps.append(((many - few) // 3, calls, reported))
    return steps


def attention_bytes(dims: ParallelDims, sequence_rank: int) -> int:
    """Bytes that a rank sends in one pass through the blocks, by the design's formula."""
    tokens = TokenShards.even((VIDEO_TOKENS, TEXT_TOKENS), dims).counts
    return BLOCKS * expected_bytes(dims, sequence_rank, tokens, tokens, (6, 6), 4 * 16)


@pytest.mark.parametrize("dims", LAYOUTS, ids=layout_name)
def test_a_step_sends_attention_and_one_flag(
    ranks: RankGroups, model: str, dims: ParallelDims
) -> None:
    flag = dims.world_size - 1
    for rank, (sent, calls, reported) in enumerate(step_traffic(ranks, model, dims)):
        assert sent == reported == attention_bytes(dims, rank) + flag
        assert calls.pop("allreduce_") == 1
        assert calls.pop("alltoall_base_", 0) == (2 * BLOCKS if dims.ulysses_degree > 1 else 0)
        assert calls.pop("send", 0) == BLOCKS * (dims.ring_degree - 1)
        assert set(calls) <= {"recv_"}


def test_branches_in_turn_send_twice_as_much(ranks: RankGroups, model: str) -> None:
    dims = ParallelDims(ulysses_degree=2)
    for rank, (sent, calls, _) in enumerate(step_traffic(ranks, model, dims, **GUIDED)):
        assert sent == 2 * attention_bytes(dims, rank) + 1
        assert calls == {"alltoall_base_": 4 * BLOCKS, "allreduce_": 1}


def test_parallel_branches_exchange_one_velocity(ranks: RankGroups, model: str) -> None:
    alone = ParallelDims(cfg_degree=2)
    for sent, calls, _ in step_traffic(ranks, model, alone, **GUIDED):
        assert sent == VIDEO_TOKENS * TOKEN_BYTES + 1
        assert calls == {"send": 1, "recv_": 1, "allreduce_": 1}
    dims = ParallelDims(cfg_degree=2, ulysses_degree=2)
    for rank, (sent, calls, reported) in enumerate(step_traffic(ranks, model, dims, **GUIDED)):
        velocity = VIDEO_TOKENS // 2 * TOKEN_BYTES
        assert sent == reported == attention_bytes(dims, rank % 2) + velocity + 3
        assert calls == {"alltoall_base_": 2 * BLOCKS, "send": 1, "recv_": 1, "allreduce_": 1}


def test_sharded_weights_are_gathered_once_per_step(ranks: RankGroups, model: str) -> None:
    """Each rank receives the weights that it lacks, one block at a time."""
    dims = ParallelDims(ulysses_degree=3)
    whole = ranks.run(3, denoiser_bytes, model, "resident")[0]
    split = step_traffic(ranks, model, dims, split_weights=True)
    fetched = []
    for rank, (sent, calls, reported) in enumerate(split):
        assert sent == reported
        fetched.append(sent - attention_bytes(dims, rank) - 2)
        gathers = {name: count for name, count in calls.items() if "gather" in name}
        assert sum(gathers.values()) == BLOCKS + 1
        assert {name: calls[name] for name in calls.keys() - gathers} == {
            "alltoall_base_": 2 * BLOCKS,
            "allreduce_": 1,
        }
    # Each rank sends its part to the two others; rows that do not divide evenly are padded.
    assert 2 * whole <= sum(fetched) <= 2 * whole * 1.02


def test_weights_of_the_next_block_are_gathered_before_this_one_computes(
    ranks: RankGroups, model: str
) -> None:
    dims = ParallelDims(ulysses_degree=2)
    order = ranks.run(2, communication_order, model, dims)[0]
    # Gathered first: weights outside the blocks, the first block, and the second block in advance.
    first = order.index("alltoall_base_")
    assert sum("gather" in name for name in order[:first]) >= 3
    fetched = [sum("gather" in each for each in order[:at]) for at in _first_exchanges(order)]
    assert fetched[-BLOCKS:-1] == [fetched[-BLOCKS] + block for block in range(BLOCKS - 1)]
    assert fetched[-1] == fetched[-2]  # nothing follows the last block


def _first_exchanges(order: list[str]) -> list[int]:
    """Position of the first of the two exchanges of each block."""
    return [at for at, name in enumerate(order) if name == "alltoall_base_"][::2]
