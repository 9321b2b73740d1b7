"""Predictions compared with published measurements, and with the rules that papers state.

pytest -s shows the tables.
"""

from __future__ import annotations

import statistics
from dataclasses import replace
from functools import cache

import pytest

from benchmarks.planning.published import (
    Column,
    Latency,
    as_published,
    attention_table,
    columns,
    fitted_attention_share,
    latencies,
    latency_table,
    spearman,
)
from longtake.configs.hardware import load_hardware
from longtake.configs.parallel import ParallelConfig
from longtake.engine.planning.plan_input import PlanInput
from longtake.engine.planning.planner import Plan, make_plan
from longtake.pipelines.models.hunyuan_video.configs import TransformerConfig
from longtake.pipelines.models.hunyuan_video.costs import HunyuanVideoCosts

ALONE = [each for each in latencies() if each.gpus == 1]
TOGETHER = [each for each in latencies() if each.gpus > 1]


def run_name(latency: Latency) -> str:
    return f"{latency.gpus}-{latency.gpu}"


def column_name(column: Column) -> str:
    return f"{column.hardware}-{column.sequence}-{column.causal}"


def test_every_published_row_is_in_the_tables() -> None:
    print("", latency_table(), "", attention_table(), sep="\n")
    assert [(each.gpu, each.gpus) for each in latencies()] == [
        (gpu, gpus)
        for gpu, counts in [("h100", 4), ("h20", 4), ("a800", 4), ("l20", 3)]
        for gpus in (1, 2, 4, 8)[:counts]
    ]
    assert len(columns()) == 8
    assert all(each.layouts == ((8, 1), (4, 2), (2, 4), (1, 8)) for each in columns())


@pytest.mark.parametrize("latency", ALONE, ids=run_name)
def test_rates_reproduce_on_gpu(latency: Latency) -> None:
    assert abs(latency.error()) < 0.005
    fitted = fitted_attention_share(latency)
    assert as_published(latency.gpu).attention_share.value == pytest.approx(fitted, rel=0.01)


@pytest.mark.parametrize("latency", TOGETHER, ids=run_name)
def test_latency_of_several_gpus(latency: Latency) -> None:
    assert abs(latency.error()) < 0.12


@pytest.mark.parametrize("column", columns(), ids=column_name)
def test_the_best_layout_of_an_attention(column: Column) -> None:
    assert column.rank_of_best() <= 2


def test_the_order_of_layouts_of_an_attention() -> None:
    assert statistics.median(each.correlation() for each in columns()) >= 0.8


def test_rank_correlation() -> None:
    assert spearman([1, 2, 3, 4], [10, 20, 30, 99]) == pytest.approx(1)
    assert spearman([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    assert spearman([1, 2, 3, 4], [1, 3, 2, 4]) == pytest.approx(1 - 6 * 2 / (4 * 15))
    assert spearman([1, 1, 2], [5, 5, 9]) == pytest.approx(1)


# Where the USP paper (arXiv 2405.07719) recommends Ulysses and ring attention.


def plan_input(gpu: str) -> PlanInput:
    """HunyuanVideo at 1280 x 720, 129 frames, as in the published runs."""
    return Latency(gpu, 50, 1, (1.0, 1.0)).plan_input(load_hardware(gpu))


@cache
def plan(gpu: str, devices: int, num_heads: int | None = None) -> Plan:
    """Every layout without a second branch; by default of the released model."""
    base = plan_input(gpu)
    if num_heads is not None:
        spec = base.spec
        assert isinstance(spec.costs, HunyuanVideoCosts)
        shape = TransformerConfig(num_attention_heads=num_heads)
        costs = replace(spec.costs, transformer=shape)
        base = replace(base, spec=replace(spec, num_heads=num_heads, costs=costs))
    return make_plan(base, ParallelConfig(), devices)


def fastest_first(plan: Plan) -> list[str]:
    """The layouts with unsharded weights, the fastest first."""
    return [each.name for each in plan.layouts if each.placement.weights == "resident"]


@pytest.mark.parametrize("gpu", ["h100", "h200", "h20", "a800", "a100-80g"])
def test_ulysses_within_nodes_and_a_ring_across_them(gpu: str) -> None:
    """The ring's traffic hides behind attention, the all-to-alls' does not."""
    names = fastest_first(plan(gpu, 16))
    assert names[0] == "1x2x8"
    # All-to-alls through the network; and 24 heads do not divide by 16. Where attention is fast, 15
    # short hops through the network are slower still.
    assert names[-1] in {"1x1x16", "1x16x1"}
    assert names.index("1x1x16") >= len(names) - 2


@pytest.mark.parametrize("gpu", ["h100", "h200", "h20", "a800", "a100-80g", "b200"])
def test_ulysses_alone_where_all_are_on_nvlink(gpu: str) -> None:
    assert fastest_first(plan(gpu, 8))[0] == plan(gpu, 8).best.name == "1x1x8"


@pytest.mark.parametrize("gpu", ["l20", "l40"])
def test_no_ulysses_alone_across_sockets(gpu: str) -> None:
    names = fastest_first(plan(gpu, 8))
    assert plan(gpu, 8).best.dims.ring_degree > 1
    assert names[-1] == "1x1x8"


def test_few_heads_need_a_ring() -> None:
    """Ulysses cannot split further than the heads."""
    few = plan("h100", 8, num_heads=2)
    assert few.best.dims.ring_degree >= 4
    assert fastest_first(few)[-1] == "1x1x8"
    steps = {each.name: each.step.seconds for each in few.layouts}
    assert 2.5 * steps[few.best.name] < steps["1x1x8"]  # where two of eight ranks compute attention


@pytest.mark.parametrize(("gpu", "devices"), [("h100", 8), ("h100", 16), ("l20", 8), ("l20", 2)])
def test_unsharded_weights_are_preferred_where_they_fit(gpu: str, devices: int) -> None:
    """Sharded weights take less memory and more traffic."""
    by_name = {each.name: each for each in plan(gpu, devices).layouts}
    whole = [name for name in by_name if "+" not in name]
    assert plan(gpu, devices).best.name in whole
    for name in whole:
        one, other = by_name[name], by_name[f"{name} +split"]
        assert one.end_to_end_s <= other.end_to_end_s
        assert one.memory.weights > other.memory.weights
        assert max(one.step_bytes) < min(other.step_bytes)


def test_weights_are_streamed_where_they_do_not_fit() -> None:
    assert all(each.placement.weights != "resident" for each in plan("rtx4090", 8).layouts)
    assert plan("rtx4090", 8).best.placement.weights == "streamed"
    assert plan("rtx4090", 8).layouts
    assert any("needs" in each.reason for each in plan("rtx4090", 8).refused)


@pytest.mark.parametrize("gpu", ["h100", "l20"])
def test_more_devices_are_faster_and_less_efficient(gpu: str) -> None:
    plans = [plan(gpu, devices) for devices in (2, 4, 8)]
    seconds = [each.best.step.seconds for each in plans]
    efficiencies = [each.efficiency(each.best) for each in plans]
    assert seconds == sorted(seconds, reverse=True)
    assert efficiencies == sorted(efficiencies, reverse=True)
    assert 0 < efficiencies[-1] < efficiencies[0] <= 1.05
