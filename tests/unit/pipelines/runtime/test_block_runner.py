"""The runner calls blocks in order, frees their inputs, and shows them to an observer."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import nn

from longtake.pipelines.runtime import block_runner
from longtake.pipelines.runtime.block_runner import BlockRunner


class Pair(nn.Module):
    """Takes and returns two segments, and an argument."""

    def forward(
        self, first: torch.Tensor, second: torch.Tensor, scale: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return scale * first + 1, second - 1


class Single(nn.Module):
    """Takes and returns one segment."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return 2 * tokens


def test_segments_pass_through_all_blocks() -> None:
    first, second = BlockRunner()([Pair(), Pair()], [torch.zeros(2), torch.zeros(3)], 3.0)
    assert first.tolist() == [4, 4] and second.tolist() == [-2, -2, -2]
    (tokens,) = BlockRunner()([Single(), Single(), Single()], [torch.ones(2)])
    assert tokens.tolist() == [8, 8]


def test_no_blocks_return_the_segments() -> None:
    (tokens,) = BlockRunner()([], [torch.ones(2)])
    assert tokens.tolist() == [1, 1]


def test_the_first_input_is_freed_after_the_first_block() -> None:
    segments = [torch.ones(2)]
    alive = weakref.ref(segments[0])
    seen = []

    class Watching(Single):
        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            seen.append(alive() is not None)
            return super().forward(tokens)

    BlockRunner()([Watching(), Watching(), Watching()], segments)
    assert seen == [True, False, False] and segments == []


def test_weights_are_prefetched_in_order_up_to_the_block_of_the_next_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    events: list[tuple[str, nn.Module]] = []

    class Recording(Single):
        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            events.append(("run", self))
            return super().forward(tokens)

    monkeypatch.setattr(block_runner, "prefetch", lambda block: events.append(("gather", block)))
    a, b, c = Recording(), Recording(), Recording()
    BlockRunner()([a, b], [torch.ones(1)], then=c)
    assert events == [
        *(("gather", a), ("gather", b), ("run", a)),
        *(("gather", c), ("run", b)),
    ]
    events.clear()
    BlockRunner()([c], [torch.ones(1)])
    assert events == [("gather", c), ("run", c)]


def test_an_observer_sees_each_block_within_the_context() -> None:
    runner, seen = BlockRunner(), []
    blocks = [Single(), Single()]
    with runner.observed(lambda block, before, after: seen.append((block, before, after))):
        runner(blocks, [torch.ones(1)])
    runner(blocks, [torch.ones(1)])
    assert [block for block, _, _ in seen] == blocks
    assert [(float(before[0]), float(after[0])) for _, before, after in seen] == [(1, 2), (2, 4)]
