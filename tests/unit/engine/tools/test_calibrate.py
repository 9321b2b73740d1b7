"""Levels of links derived from measured bandwidths."""

from __future__ import annotations

from typing import Any

import pytest

from longtake.configs.hardware import Figure, Hardware, load_hardware
from longtake.engine.planning.network import Network
from longtake.engine.tools.bench.calibrate import links_of
from longtake.engine.tools.bench.measures import transfer_s


def figure(value: float) -> Figure:
    return Figure(value=value, source="of a test")


def measured(*pairs: tuple[int, float]) -> list[dict[str, Any]]:
    return [
        {"ranks": ranks, "exchange_bytes_per_s": bandwidth, "latency_s": 1e-5 * ranks}
        for ranks, bandwidth in pairs
    ]


def exchange_s(links: list[Any], ranks: int, size: float) -> float:
    """Predicted seconds of an all-to-all over these links, with ``size`` bytes per rank."""
    profile = load_hardware("l20").model_dump() | {"links": [link.model_dump() for link in links]}
    pairs = [(i, j, size / (ranks - 1)) for i in range(ranks) for j in range(ranks) if i != j]
    return Network(Hardware.model_validate(profile)).seconds(pairs)


def test_a_switch_is_one_level() -> None:
    (link,) = links_of(measured((2, 300e9), (4, 310e9), (8, 290e9)), figure)
    assert (link.spans, link.shared_by, link.bytes_per_s.value) == (None, 1, 300e9)


def test_slower_links_are_further_levels() -> None:
    found = links_of(measured((2, 20e9), (4, 5e9), (8, 4.8e9)), figure)
    assert [(link.spans, link.shared_by) for link in found] == [(2, 1), (None, 2)]


@pytest.mark.parametrize("bandwidths", [(20e9, 5e9, 2e9), (20e9, 19e9, 3e9), (7e9, 2e9, 0.5e9)])
def test_the_plan_predicts_what_was_measured(bandwidths: tuple[float, ...]) -> None:
    links = links_of(measured(*zip((2, 4, 8), bandwidths, strict=True)), figure)
    for ranks, bandwidth in zip((2, 4, 8), bandwidths, strict=True):
        seconds = exchange_s(links, ranks, 1e9)
        assert seconds == pytest.approx(1e9 / bandwidth, rel=0.06)


def test_latency_is_not_part_of_a_transfer() -> None:
    assert transfer_s(0.020, 0.001) == pytest.approx(0.019)


def test_noise_in_the_latency_halves_a_transfer_at_most() -> None:
    assert transfer_s(0.020, 0.019) == transfer_s(0.020, 0.050) == 0.010
