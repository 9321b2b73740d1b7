"""Which layout a request runs in."""

from __future__ import annotations

import logging

import pytest

from longtake.configs.parallel import ParallelConfig
from longtake.engine.planner import check_degrees, choose_dims
from longtake.errors import LayoutError
from longtake.parallel import ParallelDims


def dims(cfg_degree: int, ring_degree: int, ulysses_degree: int) -> ParallelDims:
    return ParallelDims(
        cfg_degree=cfg_degree, ring_degree=ring_degree, ulysses_degree=ulysses_degree
    )


@pytest.mark.parametrize(
    ("devices", "heads", "true_cfg", "chosen"),
    [
        (1, 24, False, dims(1, 1, 1)),
        (1, 24, True, dims(1, 1, 1)),
        (8, 24, False, dims(1, 1, 8)),
        (5, 24, False, dims(1, 1, 5)),  # 25 places for 24 heads
        (7, 24, False, dims(1, 7, 1)),  # 28 places would idle a seventh
        (16, 24, False, dims(1, 2, 8)),
        (6, 24, False, dims(1, 1, 6)),
        (4, 6, False, dims(1, 2, 2)),
        (64, 2, False, dims(1, 32, 2)),
        (2, 24, True, dims(2, 1, 1)),
        (16, 24, True, dims(2, 1, 8)),
        (3, 24, True, dims(1, 1, 3)),
    ],
)
def test_the_rule(devices: int, heads: int, true_cfg: bool, chosen: ParallelDims) -> None:
    assert choose_dims(ParallelConfig(), devices, num_heads=heads, true_cfg=true_cfg) == chosen


@pytest.mark.parametrize(
    ("asked", "devices", "true_cfg", "chosen"),
    [
        (dict(ulysses_degree=2), 6, False, dims(1, 3, 2)),
        (dict(ring_degree=2), 6, False, dims(1, 2, 3)),
        (dict(ring_degree=2), 6, True, dims(1, 2, 3)),  # 2 x ring 2 is no part of 6
        (dict(ring_degree=3), 6, True, dims(2, 3, 1)),
        (dict(cfg_degree=1), 4, True, dims(1, 1, 4)),
        (dict(cfg_degree=2), 4, True, dims(2, 1, 2)),
        (dict(cfg_degree=2, ring_degree=2, ulysses_degree=2), 8, True, dims(2, 2, 2)),
        (dict(ring_degree=2, ulysses_degree=2), 8, True, dims(2, 2, 2)),
    ],
)
def test_degrees_that_are_given_stay(
    asked: dict[str, int], devices: int, true_cfg: bool, chosen: ParallelDims
) -> None:
    config = ParallelConfig.model_validate(asked)
    check_degrees(config, devices, num_heads=24)
    assert choose_dims(config, devices, num_heads=24, true_cfg=true_cfg) == chosen


@pytest.mark.parametrize(
    ("asked", "devices", "text"),
    [
        (
            dict(ulysses_degree=3, ring_degree=2),
            4,
            "ring_degree=2 x ulysses_degree=3 needs 6 ranks, got devices=4: try devices=6, or "
            "ring_degree=1 x ulysses_degree=4",
        ),
        (
            dict(ulysses_degree=3),
            4,
            "ulysses_degree=3 needs a multiple of 3 ranks, got devices=4: try devices=3, or "
            "ring_degree=1 x ulysses_degree=4",
        ),
        (
            dict(cfg_degree=2),
            3,
            "cfg_degree=2 needs a multiple of 2 ranks, got devices=3: try devices=2, or "
            "cfg_degree=1 x ring_degree=1 x ulysses_degree=3",
        ),
        (
            dict(ulysses_degree=8),
            2,
            "ulysses_degree=8 needs a multiple of 8 ranks, got devices=2: try devices=8, or "
            "ring_degree=1 x ulysses_degree=2",
        ),
    ],
)
def test_degrees_that_fit_nothing(asked: dict[str, int], devices: int, text: str) -> None:
    with pytest.raises(LayoutError) as caught:
        check_degrees(ParallelConfig.model_validate(asked), devices, num_heads=24)
    assert str(caught.value) == text


def test_branches_side_by_side_need_true_cfg() -> None:
    with pytest.raises(LayoutError, match="cfg_degree=2 without true CFG: there is no second"):
        choose_dims(ParallelConfig(cfg_degree=2), 2, num_heads=24, true_cfg=False)


def test_ranks_without_heads_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        choose_dims(ParallelConfig(ulysses_degree=8), 8, num_heads=6, true_cfg=False)
    assert "2 ranks of each group have no head" in caplog.text
