"""examples/long_context trains as one process with transformers alone does, under every layout."""

from __future__ import annotations

from collections import Counter
from itertools import product
from pathlib import Path

import pytest
import torch

from examples.long_context import checkpoint
from examples.long_context.layout import Layout
from longtake.errors import RequestError
from longtake.parallel import TokenShards
from longtake.parallel.plugs.sequence import ShardedSequence
from longtake.parallel.plugs.transformers import causal_lm_inputs
from tests.long_context import (
    Course,
    count_collectives,
    make_options,
    train_alone,
    train_on_ranks,
)
from tests.ranks import RankGroups

LAYOUTS = [
    *("1x1x1x1", "2x1x1x1", "1x2x1x1", "1x1x2x1", "1x1x1x2", "1x1x3x1"),
    *("2x2x1x1", "1x1x2x2", "1x5x1x1", "1x2x3x1", "3x1x1x2", "1x3x1x2"),
]
"""dp x ring x ulysses x tp."""

STEPS = 20
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("long_context")


@pytest.fixture(scope="module")
def alone(folder: Path) -> Course:
    """20 steps in one process. Every gradient is clipped."""
    course = train_alone(make_options(folder), STEPS)
    assert course.norms.min() > make_options(folder).clip_norm
    assert course.losses[-1] < course.losses[0] - 0.5
    return course


def assert_equal(courses: list[Course], alone: Course, steps: range) -> None:
    """Check the losses, norms and gradients of all ranks."""
    expected = (alone.losses[steps.start : steps.stop], alone.norms[steps.start : steps.stop])
    for course in courses:
        torch.testing.assert_close((course.losses, course.norms), expected, rtol=0, atol=TOLERANCE)
        assert len(course.gradient_errors) == len(steps)
        assert course.gradient_errors.max() <= TOLERANCE


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_trains_as_one_process(
    ranks: RankGroups, folder: Path, alone: Course, layout: str
) -> None:
    options = make_options(folder, layout=layout)
    steps = range(STEPS)
    courses = ranks.run(options.layout.num_ranks, train_on_ranks, options, steps, alone.gradients)
    assert_equal(courses, alone, steps)
    norms = (2 * options.layers + 1) * options.width  # tensor parallelism does not split them
    num_weights = alone.gradients.shape[1] + (options.layout.tp - 1) * norms
    assert sum(course.weights_held for course in courses) == num_weights


def coordinates(layout: Layout) -> tuple[int | None, ...]:
    """On one rank: its places along dp, ring, ulysses and tp."""
    meshes = layout.build_meshes("cpu")
    ring, ulysses = (meshes.sequence.get_local_rank(axis) for axis in ("ring", "ulysses"))
    return (meshes.data.get_local_rank(), ring, ulysses, meshes.weights.get_local_rank("tp"))


@pytest.mark.parametrize("layout", ["1x3x1x2", "3x1x2x1", "1x2x3x1"])
def test_inner_axes_have_neighboring_ranks(ranks: RankGroups, layout: str) -> None:
    degrees = map(int, layout.split("x"))
    expected = list(product(*map(range, degrees)))
    assert ranks.run(6, coordinates, Layout.parse(layout)) == expected


def test_rank_without_a_label(ranks: RankGroups, folder: Path) -> None:
    """The second of two tokens predicts nothing."""
    options = make_options(folder, layout="1x1x2x2", num_tokens=2, batch_size=1)
    expected = train_alone(options, 2)
    courses = ranks.run(4, train_on_ranks, options, range(2), expected.gradients)
    assert_equal(courses, expected, range(2))


@pytest.mark.parametrize("layout", ["1x1x2x1", "1x2x1x2"])
def test_packed_documents_train_as_in_one_process(
    ranks: RankGroups, folder: Path, layout: str
) -> None:
    options = make_options(
        folder, layout=layout, packed=True, num_tokens=101, batch_size=2, accumulation=2
    )
    expected = train_alone(options, 2)
    unpacked = train_alone(make_options(folder, num_tokens=101, batch_size=2), 2)
    assert (expected.gradients - unpacked.gradients).abs().max() > 1e-4
    courses = ranks.run(
        options.layout.num_ranks, train_on_ranks, options, range(2), expected.gradients
    )
    assert_equal(courses, expected, range(2))


def test_accumulation_equals_one_big_batch(ranks: RankGroups, folder: Path, alone: Course) -> None:
    options = make_options(folder, layout="2x1x1x2", accumulation=3)
    courses = ranks.run(4, train_on_ranks, options, range(5), alone.gradients[:5])
    assert_equal(courses, alone, range(5))


def test_zero_2_equals_zero_3_and_recomputation_changes_nothing(
    ranks: RankGroups, folder: Path
) -> None:
    """To the bit. Only the recomputation of attention sends more."""

    def train(**changes: str | int) -> list[Course]:
        options = make_options(folder, layout="2x1x2x1", **changes)
        return ranks.run(4, train_on_ranks, options, range(3))

    plain = train()
    zero_2 = train(zero=2)
    all_again, not_attention = train(recompute="all"), train(recompute="all-but-attention")
    for courses in (zero_2, all_again, not_attention):
        for course, expected in zip(courses, plain, strict=True):
            assert torch.equal(course.losses, expected.losses)
            assert torch.equal(course.norms, expected.norms)
    for rank, course in enumerate(plain):
        assert course.bytes_sent == zero_2[rank].bytes_sent == not_attention[rank].bytes_sent
        assert course.bytes_sent < all_again[rank].bytes_sent


def test_collectives_of_a_step(ranks: RankGroups, folder: Path) -> None:
    """Of 3 layers. The embedding and the head are one more group of weights."""

    def count(**changes: str | int) -> Counter[str]:
        options = make_options(folder, **{"layers": 3, **changes})
        counts: list[Counter[str]] = ranks.run(2, count_collectives, options)
        assert counts[0] == counts[1]
        return counts[0]

    zero_3, zero_2 = count(layout="1x2x1x1"), count(layout="1x2x1x1", zero=2)
    assert zero_3["_allgather_base_"] == 2 * 3 + 1
    assert zero_2["_allgather_base_"] == 3 + 1
    assert zero_3["_reduce_scatter_base_"] == zero_2["_reduce_scatter_base_"] == 3 + 1
    assert zero_3["allreduce_"] == 2  # the norm, and the loss that is shown

    tensor_parallel = count(layout="1x1x1x2")["all_reduce"]
    assert tensor_parallel - count(layout="1x1x1x2", layers=2)["all_reduce"] == 2 + 2


@pytest.mark.parametrize(
    ("before", "after"), [("1x5x1x1", "1x1x1x2"), ("1x2x1x2", "1x1x3x1"), ("1x1x1x2", "1x1x1x2")]
)
def test_checkpoint_continues_under_another_layout(
    ranks: RankGroups, folder: Path, tmp_path: Path, alone: Course, before: str, after: str
) -> None:
    options = make_options(folder, layout=before)
    ranks.run(options.layout.num_ranks, train_on_ranks, options, range(3), None, None, tmp_path)
    newest = checkpoint.latest(tmp_path)
    assert newest == (3, tmp_path / "step-3")
    assert {path.suffix for path in newest[1].iterdir()} == {".json", ".safetensors"}
    assert list(tmp_path.iterdir()) == [newest[1]]

    options = make_options(folder, layout=after)
    checkpoint.check_run(newest[1], options.run)
    courses = ranks.run(
        options.layout.num_ranks,
        *(train_on_ranks, options, range(3, 6), alone.gradients[3:6], newest[1]),
    )
    assert_equal(courses, alone, range(3, 6))


def test_checkpoint_of_another_run_is_refused(
    ranks: RankGroups, folder: Path, tmp_path: Path
) -> None:
    options = make_options(folder)
    ranks.run(1, train_on_ranks, options, range(1), None, None, tmp_path)
    other = make_options(folder, learning_rate=0.1)
    with pytest.raises(RequestError, match=r"learning_rate=0.1, and .* with learning_rate=0.001"):
        checkpoint.check_run(tmp_path / "step-1", other.run)


def test_bfloat16_follows_float32(ranks: RankGroups, folder: Path, alone: Course) -> None:
    options = make_options(folder, layout="1x2x1x2", dtype="bfloat16")
    for course in ranks.run(4, train_on_ranks, options, range(5)):
        difference = (course.losses - alone.losses[:5]).abs().max()
        assert 1e-5 < difference < 2e-2


def labels_on_rank(layout: Layout, num_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """On one rank: the whole sequence's labels, shifted before the split and after it."""
    mesh = layout.build_meshes("cpu").sequence
    shards = TokenShards.zigzag(num_tokens, layout.sequence)
    tokens = torch.arange(num_tokens)[None]
    inputs = causal_lm_inputs(ShardedSequence(mesh, shards), tokens)
    own = inputs["input_ids"]
    shifted_late = torch.cat([own[:, 1:], torch.full((1, 1), -100)], dim=1)
    return (
        shards.gather(inputs["shift_labels"], mesh, dim=1),
        shards.gather(shifted_late, mesh, dim=1),
    )


def test_labels_are_shifted_across_the_borders_of_shards(ranks: RankGroups) -> None:
    expected = torch.tensor([[*range(1, 37), -100]])
    for shifted, shifted_late in ranks.run(4, labels_on_rank, Layout.parse("1x2x2x1"), 37):
        assert torch.equal(shifted, expected)
        assert not torch.equal(shifted_late, expected)
