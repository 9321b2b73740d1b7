"""Sharded weights of several dtypes: loaded by rows, gathered in advance, equal to whole ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests import loading
from tests.ranks import RankGroups
from tests.rendering import ALONE

SIZES = pytest.mark.parametrize("world_size", [2, 3, 5])


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return loading.save_weights(tmp_path_factory.mktemp("weights"), num_files=2)


@SIZES
@pytest.mark.parametrize(("sharded", "prefetches"), [(False, False), (True, False), (True, True)])
def test_outputs_equal_those_of_one_rank(
    ranks: RankGroups, files: list[Path], world_size: int, sharded: bool, prefetches: bool
) -> None:
    expected = loading.outputs_on_one_rank(files)
    assert not torch.equal(expected[0], expected[1])
    for outputs in ranks.run(world_size, loading.outputs, files, sharded, prefetches):
        torch.testing.assert_close(outputs, expected, rtol=0, atol=0)


@SIZES
def test_each_rank_reads_its_own_rows(
    ranks: RankGroups, files: list[Path], world_size: int
) -> None:
    """A buffer is whole on every rank, so one rank reads it and sends it to the others."""
    results = ranks.run(world_size, loading.rows_read, files)
    total = {name: len(tensor) for name, tensor in loading.weights().items()}
    for name, expected in total.items():
        assert sum(rows.get(name, 0) for rows, _ in results) == expected
    most = max(rows.get("blocks.0.down.weight", 0) for rows, _ in results)
    assert most == -(-loading.WIDTH // world_size)
    buffer_bytes = loading.WIDTH * torch.bfloat16.itemsize
    assert [sent for _, sent in results] == [buffer_bytes * (world_size - 1)] + [0] * (
        world_size - 1
    )


@SIZES
def test_bytes_gathered_are_counted_exactly(
    ranks: RankGroups, files: list[Path], world_size: int
) -> None:
    for sent, counted in ranks.run(world_size, loading.sent_and_counted, files):
        assert sent == counted > 1000


@pytest.mark.parametrize("world_size", [2, 3])
def test_prefetch_starts_the_next_gather_before_a_block_computes(
    ranks: RankGroups, files: list[Path], world_size: int
) -> None:
    """The weights outside of blocks are gathered first."""
    for started in ranks.run(world_size, loading.gathers_before_blocks, files, True):
        assert started == [3, 4, 5, 5, 5]
    for started in ranks.run(world_size, loading.gathers_before_blocks, files, False):
        assert started == [2, 3, 4, 5, 5]


def test_weights_on_their_way_are_not_gathered_again(ranks: RankGroups, files: list[Path]) -> None:
    for order in ranks.run(2, loading.prefetch_twice, files):
        assert len(order) == 1


@pytest.mark.parametrize("world_size", [2, 3])
def test_a_step_gathers_the_expert_that_it_calls(
    ranks: RankGroups, tmp_path: Path, files: list[Path], world_size: int
) -> None:
    others = loading.save_weights(tmp_path, loading.weights(seed=9))
    expected = [loading.loaded(each, ALONE)(loading.tokens()) for each in (files, others)]
    assert not torch.equal(*expected)
    order = [0, 0, 1, 0, 1]
    for calls in ranks.run(world_size, loading.run_experts, (files, others), order):
        for expert, (output, sent, counted) in zip(order, calls, strict=True):
            assert torch.equal(output, expected[expert])
            assert sent == counted
