"""Predictions compared with the USP paper's runs. pytest -s shows the table."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.planning.published_training import Run, runs, table
from longtake.engine.planning.training.attention import BACKWARD_FLOPS, BACKWARD_RATE
from longtake.engine.planning.training.planner import least_recompute

PAGE = Path(__file__).parents[5] / "docs/explanation/training.md"


def run_name(run: Run) -> str:
    return f"{run.model}-{run.sequence}"


def test_all_runs_are_in_the_table_and_on_the_page() -> None:
    print("", table(runs()), sep="\n")
    assert [(run.model, run.sequence) for run in runs()] == [
        ("llama3-8b", 65536),
        ("llama3-8b", 81920),
        ("llama3-8b", 122880),
        ("llama3-8b", 212992),
        ("llama2-7b", 30720),
    ]
    assert table(runs()) in PAGE.read_text()


@pytest.mark.parametrize("run", runs(), ids=run_name)
def test_utilization(run: Run) -> None:
    assert abs(run.error()) < 0.08


def test_errors_have_no_common_direction_beyond_a_few_percent() -> None:
    errors = [run.error() for run in runs()]
    assert abs(sum(errors) / len(errors)) < 0.04


@pytest.mark.parametrize("run", runs(), ids=run_name)
def test_the_runs_fit_in_memory(run: Run) -> None:
    limit = run.training.hardware.memory_bytes
    assert limit is not None
    assert run.predicted().memory.total < limit.value


def test_what_is_recomputed_follows_from_memory() -> None:
    assert [run.recompute for run in runs()] == [*["selective"] * 4, "none"]


def test_no_run_recomputed_attention() -> None:
    """At FlashAttention-2's rates each would have been 9 to 23 % slower than it was."""
    for run in runs():
        assert 0.75 * run.mfu < run.predicted(recompute="full").mfu < 0.915 * run.mfu


def test_hidden_exchanges_would_not_explain_the_runs() -> None:
    """ZeRO-3 needs no recomputation for the first run, and would have reached more."""
    first = runs()[0]
    assert first.predicted(zero=3, recompute="none").mfu > 1.2 * first.mfu
    errors = [run.error(zero=3) for run in runs()]
    assert errors == pytest.approx([0.15, 0.06, -0.01, 0.00, 0.10], abs=0.005)


def test_the_stated_setup_would_not_explain_the_runs() -> None:
    """ZeRO-3, and full recomputation of what does not fit without, as the data's header has it."""
    fits = [least_recompute(run.training, run.layout(3)) == "none" for run in runs()]
    assert fits == [True, True, True, False, True]
    errors = [
        run.error(3, "none" if fit else "full") for run, fit in zip(runs(), fits, strict=True)
    ]
    assert errors == pytest.approx([0.25, 0.14, 0.06, -0.16, 0.10], abs=0.005)


def test_full_recomputation_cannot_reach_the_longest_run() -> None:
    """At FlashAttention-2's rates, with matrices at the peak and nothing sent."""
    longest = max(runs(), key=lambda run: run.sequence)
    training = longest.training
    rate = training.hardware.attention_share.value
    attention = 3 / (2 / rate + BACKWARD_FLOPS / (rate * BACKWARD_RATE))
    assert attention == pytest.approx(0.40, abs=0.005)
    config, decoder = training.config, training.decoder
    flops = 2 * training.sequence**2 * decoder.query_width * config.num_hidden_layers
    share = flops / decoder.forward_flops(training.sequence)
    assert share == pytest.approx(0.79, abs=0.005)
    reached = 1 / (share / attention + (1 - share) / (3 / 4))
    assert reached == pytest.approx(0.45, abs=0.005)
    assert reached < longest.mfu - 0.02
