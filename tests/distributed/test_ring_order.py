"""The ring computes, sends and awaits what a query sees, and overlaps the one with the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch

from longtake.parallel import ParallelDims, exchange
from longtake.parallel.attention import call, ring
from longtake.parallel.attention.mask import Mask
from longtake.parallel.attention.traffic import AttentionTraffic
from longtake.parallel.kernels.attend import attend, attend_backward
from longtake.parallel.kernels.kernel import KernelOptions
from tests.attention_cases import Case, on_rank
from tests.layouts import LAYOUTS, layout_name
from tests.ranks import RankGroups


def events_of(dims: ParallelDims, case: Case) -> list[str]:
    """On one rank of a ring: what it does in forward and backward passes, in order.

    "compute" is one tile; "send" and "receive" start the transfer of some tokens; "wait" ends one
    or two that were started together.
    """
    events: list[str] = []

    def tile(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            events.append("compute")
            return function(*args)

        return run

    def start(*, sends: Any, receives: Any, group: Any) -> Callable[[], None]:
        names = [
            f"{name} {tensor.shape[0]}"
            for name, ((tensor, _),) in (("send", sends), ("receive", receives))
            if len(tensor)
        ]
        events.extend(names)
        wait = exchange.start_send_recv(sends, receives, group)

        def ended() -> None:
            if names:
                events.append("wait for " + " and ".join(names))
            wait()

        return ended

    with (
        mock.patch.object(call, "attend", tile(attend)),
        mock.patch.object(call, "attend_backward", tile(attend_backward)),
        mock.patch.object(ring, "start_send_recv", start),
    ):
        on_rank(dims, case)
    return events


def test_without_a_mask_all_is_in_flight_while_a_block_is_computed(ranks: RankGroups) -> None:
    """Forward: the next block. Backward: the next block, and the gradient of the last one."""
    block = ["send 4", "receive 4"]
    arrived = "wait for send 4 and receive 4"
    forward = [*block, "compute", arrived, *block, "compute", arrived, "compute"]
    backward = [
        *(*block, "compute", arrived),  # the rank's own block, whose gradient stays
        *(*block, "compute", *block, arrived),  # the first gradient leaves, the last block is here
        *("compute", arrived, *block, arrived),  # the first gradient arrives, the second leaves
    ]
    case = Case(12, (2, 1))
    assert ranks.run(3, events_of, ParallelDims(ring_degree=3), case) == [forward + backward] * 3


def test_contiguous_blocks_in_the_future_are_not_computed_sent_or_awaited(
    ranks: RankGroups,
) -> None:
    first, middle, last = ranks.run(
        3, events_of, ParallelDims(ring_degree=3), Case(12, (2, 1), causal=True)
    )
    block = ["send 4", "receive 4", "compute", "wait for send 4 and receive 4"]
    assert first == [
        *("send 4", "compute", "wait for send 4"),
        *("send 4", "compute", "wait for send 4"),
        *("receive 4", "wait for receive 4", "receive 4", "wait for receive 4"),
    ]
    assert middle[:7] == [*block, "send 4", "compute", "wait for send 4"]
    assert last[:7] == ["receive 4", "compute", "wait for receive 4"] * 2 + ["compute"]
    assert [each.count("compute") for each in (first, middle, last)] == [2, 4, 6]


def test_documents_of_other_ranks_are_not_computed_sent_or_awaited(ranks: RankGroups) -> None:
    case = Case(12, (2, 1), document_lengths=(4, 4, 4))
    answers = ranks.run(3, events_of, ParallelDims(ring_degree=3), case)
    assert answers == [["compute", "compute"]] * 3


def test_zigzag_ranks_compute_one_tile_a_block(ranks: RankGroups) -> None:
    """A block travels to the earlier ranks whole, and to the later ones by its first chunk.

    In the backward pass a rank then sends the gradients of what it saw of two blocks.
    """
    dims, case = ParallelDims(ring_degree=3), Case(24, (2, 1), causal=True, zigzag=True)
    answers = ranks.run(3, events_of, dims, case)
    for events in answers:
        assert events.count("compute") == 6
    sent = [[event for event in events if event.startswith("send")] for events in answers]
    assert sent == [
        ["send 4", "send 4"] + ["send 4", "send 4", "send 8", "send 8"],
        ["send 8", "send 8"] + ["send 8", "send 8", "send 8", "send 4"],
        ["send 8", "send 4"] + ["send 8", "send 4", "send 4", "send 4"],
    ]


def computed_scores(dims: ParallelDims, cases: list[Case]) -> list[tuple[int, int]]:
    """On one rank: scores of one head that kernels compute, forward and backward, of each case."""
    counted = []
    for case in cases:
        forward: list[int] = []
        backward: list[int] = []

        def run(*args: Any, scores: list[int] = forward) -> Any:
            _, q, k, _, options, _ = args
            scores.append(num_scores(q, k, options))
            return attend(*args)

        def run_backward(*args: Any, scores: list[int] = backward) -> Any:
            _, _, saved, options, _ = args
            scores.append(num_scores(saved.q, saved.k, options))
            return attend_backward(*args)

        with (
            mock.patch.object(call, "attend", run),
            mock.patch.object(call, "attend_backward", run_backward),
        ):
            on_rank(dims, case)
        counted.append((sum(forward), sum(backward)))
    return counted


def num_scores(q: torch.Tensor, k: torch.Tensor, options: KernelOptions) -> int:
    """Pairs of a query and a key that a kernel computes for a head."""
    num_queries, num_keys = q.shape[1], k.shape[1]
    if not options.causal:
        return num_queries * num_keys
    assert num_queries == num_keys
    return num_queries * (num_queries + 1) // 2


@pytest.mark.parametrize("dims", LAYOUTS, ids=layout_name)
def test_ranks_compute_the_scores_of_the_schedule_and_zigzag_balances_them(
    ranks: RankGroups, dims: ParallelDims
) -> None:
    lengths = [1, 7, 24, 31]
    for zigzag in (False, True):
        cases = [Case(length, (2, 1), causal=True, zigzag=zigzag) for length in lengths]
        answers = ranks.run(dims.world_size, computed_scores, dims, cases)
        for case, length, *scores in zip(cases, lengths, *answers, strict=True):
            schedule = AttentionTraffic(dims, case.dealt(dims)[0], 1, 1, 1, Mask(True)).schedule
            for rank, (forward, backward) in enumerate(scores):
                ring_rank = rank // dims.ulysses_degree
                assert forward == backward == schedule.num_scores(ring_rank)
            work = [forward for forward, _ in scores[:: dims.ulysses_degree]]
            assert sum(work) == length * (length + 1) // 2, (
                "no score is computed twice, none hidden"
            )
            assert not zigzag or max(work) - min(work) <= length
