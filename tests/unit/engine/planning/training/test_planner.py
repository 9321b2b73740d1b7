"""Plans of training: what fits, what is refused, and how predictions change with the work."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from longtake.configs.decoders import load_decoder
from longtake.configs.hardware import Figure, load_hardware
from longtake.engine.planning.training.layouts import MAX_DEVICES, TrainingLayout
from longtake.engine.planning.training.memory import plan_memory
from longtake.engine.planning.training.planner import (
    TrainingPlan,
    available_bytes,
    broken_rule,
    least_recompute,
    make_training_plan,
    predict,
)
from longtake.engine.planning.training.training_input import RECOMPUTE, TrainingInput
from longtake.errors import LayoutError, RequestError


def training(model: str = "llama3-8b", gpu: str = "a800", **changes: Any) -> TrainingInput:
    fields: dict[str, Any] = {"sequence": 32768, **changes}
    return TrainingInput(config=load_decoder(model), hardware=load_hardware(gpu), **fields)


@cache
def plan(devices: int = 16, batch: int = 2, sequence: int = 32768) -> TrainingPlan:
    return make_training_plan(training(batch=batch, sequence=sequence), devices)


def is_sorted(values: Iterable[float]) -> bool:
    listed = list(values)
    return listed == sorted(set(listed))


def test_every_layout_is_predicted_or_refused_with_a_reason() -> None:
    found = plan()
    names = [each.layout.name for each in found.layouts]
    names += [each.layout.name for each in found.refused]
    assert len(set(names)) == len(names) > 300
    for each in found.refused:
        assert each.reason and "\n" not in each.reason
    reasons = " ".join(each.reason for each in found.refused)
    for part in ("GiB a rank", "divide 8 KV heads", "does not divide a batch of 2"):
        assert part in reasons


def test_the_best_comes_first_and_fits() -> None:
    found = plan()
    seconds = [each.time.seconds for each in found.layouts]
    assert seconds[1:] == sorted(seconds[1:])
    assert found.best is found.layouts[0]
    assert seconds[0] <= 1.005 * min(seconds)
    limit = found.training.hardware.memory_bytes
    assert limit is not None
    assert all(each.memory.total <= limit.value for each in found.layouts)


def test_parts_add_up_to_the_step() -> None:
    for each in plan().layouts:
        time = each.time
        parts = (time.matrices_s, time.attention_s, time.memory_s, time.exposed_s, time.waiting_s)
        assert time.seconds == pytest.approx(sum(parts))
        assert min(*parts, time.hidden_s) >= 0
        assert 0 < each.mfu < 1
        assert each.tokens_per_s == pytest.approx(2 * 32768 / time.seconds)


def test_more_work_takes_longer_and_more_memory() -> None:
    layouts = (
        TrainingLayout(ring=2, ulysses=4, zero=3),
        TrainingLayout(tensor=8),
        TrainingLayout(data=2, ulysses=2, tensor=2, zero=1),
        TrainingLayout(pipeline=4, ring=2, zero=2),
    )
    for layout in layouts:
        lengths = [
            predict(training(sequence=s, batch=4), layout, "none") for s in (8192, 16384, 65536)
        ]
        assert [e.time.seconds for e in lengths] == sorted(e.time.seconds for e in lengths)
        assert [e.memory.total for e in lengths] == sorted(e.memory.total for e in lengths)
        # attention grows with the square, the rest at most in proportion
        ratio = lengths[2].time.attention_s / lengths[1].time.attention_s
        assert ratio == pytest.approx(16, rel=0.01)
        kinds = (
            [predict(training(), layout, each) for each in RECOMPUTE] if layout.data == 1 else []
        )
        assert [e.time.seconds for e in kinds] == sorted(e.time.seconds for e in kinds)
        assert [e.memory.total for e in kinds] == sorted(
            (e.memory.total for e in kinds), reverse=True
        )


def test_more_devices_are_faster_and_less_efficient() -> None:
    found = [plan(devices).best for devices in (8, 16, 32)]
    seconds = [each.time.seconds for each in found]
    assert seconds == sorted(seconds, reverse=True)
    same = [
        predict(training(sequence=65536), TrainingLayout(ring=n, ulysses=8, zero=3), "none").mfu
        for n in (1, 2, 4)
    ]
    assert same == sorted(same, reverse=True)


def test_a_pipeline_waits_less_with_more_micro_batches() -> None:
    shares = []
    for batch in (1, 4, 16):
        time = predict(training(batch=batch), TrainingLayout(pipeline=8), "none").time
        shares.append(time.waiting_s / time.seconds)
    # (stages - 1) / (micro-batches + stages - 1), the optimizer aside
    assert shares == pytest.approx([7 / 8, 7 / 11, 7 / 23], rel=0.05)


def test_accumulation_reduces_gradients_once_up_to_zero_1() -> None:
    def exposed(zero: Any, batch: int) -> float:
        layout = TrainingLayout(data=8, zero=zero)
        return predict(training("llama2-7b", batch=batch), layout, "none").time.exposed_s

    assert exposed(0, 32) == pytest.approx(exposed(0, 8))
    assert exposed(1, 32) == pytest.approx(exposed(1, 8))
    assert exposed(1, 8) < exposed(0, 8)
    assert exposed(3, 32) == pytest.approx(4 * exposed(3, 8))  # gathers for each micro-batch
    assert exposed(3, 8) < 0.2 * exposed(1, 8)  # hidden by computation


@pytest.mark.parametrize(
    ("layout", "rule"),
    [
        (TrainingLayout(tensor=16), r"tensor degree 16 does not divide 8 KV heads"),
        (TrainingLayout(tensor=3), r"tensor degree 3 does not divide 8 KV heads"),
        (
            TrainingLayout(ulysses=16, tensor=4),
            r"Ulysses x tensor degree 64 leaves ranks without heads: there are 32",
        ),
        (TrainingLayout(pipeline=64), r"pipeline degree 64 exceeds 32 blocks"),
        (TrainingLayout(data=2), r"data degree 2 does not divide a batch of 1"),
        (TrainingLayout(ring=64), r"64 ranks share 40 tokens"),
    ],
)
def test_rules(layout: TrainingLayout, rule: str) -> None:
    reason = broken_rule(training(sequence=40), layout)
    assert reason is not None and re.fullmatch(rule, reason)


def test_the_least_recomputation_that_fits() -> None:
    layout = TrainingLayout(ring=2, ulysses=4, zero=3)
    found = [least_recompute(training(sequence=n), layout) for n in (8192, 131072, 2**22)]
    assert found == ["none", "selective", None]


def test_ranks_of_one_host_share_its_memory() -> None:
    """A reason has what a rank has and what it needs, which differ by what it lacks."""
    limit = Figure(value=64 * 2**30, source="a test")
    hardware = load_hardware("cpu").model_copy(update={"memory_bytes": limit})
    work = replace(training(sequence=64), hardware=hardware, dtype="float32")
    layout = TrainingLayout(ulysses=2, zero=3)
    assert available_bytes(work, layout) == 32 * 2**30
    (refused,) = make_training_plan(work, 2, wanted=lambda each: each == layout).refused
    pattern = r"needs (\S+) GiB a rank and there are (\S+): (\S+) too much"
    found = re.fullmatch(pattern, refused.reason)
    assert found is not None
    needed, available, missing = map(float, found.groups())
    assert available == 32.0
    assert needed == pytest.approx(available + missing, abs=0.11)
    assert needed == pytest.approx(plan_memory(work, layout, "full").total / 2**30, abs=0.06)


def test_refusals() -> None:
    with pytest.raises(LayoutError, match=f"plans are made for {MAX_DEVICES} at most"):
        make_training_plan(training(), MAX_DEVICES + 1)
    with pytest.raises(LayoutError, match="no layout of devices=8 is wanted"):
        make_training_plan(training(), 8, wanted=lambda layout: layout.ring == 3)
    a800 = load_hardware("a800")
    rates = {"float32": a800.flops_per_s["float32"]}
    with pytest.raises(RequestError, match="has no rate for it: use float32"):
        replace(training(), hardware=a800.model_copy(update={"flops_per_s": rates}))
    refused = make_training_plan(training(sequence=2**22), 8)
    assert refused.layouts == ()
    with pytest.raises(RequestError, match=r"sequence_length=4194304: .* needs .* take more"):
        _ = refused.best
