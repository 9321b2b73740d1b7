"""Half precision loses no more on N ranks than in one process, and repeats itself bitwise."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch

from longtake.parallel import ParallelDims
from tests.attention_cases import NAMES, ONE_PROCESS, Case, across_ranks, expected
from tests.layouts import LAYOUTS, layout_name
from tests.ranks import RankGroups

CASES = [
    Case(257, (6, 2), causal=causal, zigzag=causal, head_size=32, dtype=torch.bfloat16)
    for causal in (False, True)
]
SEEDS = range(3)
"""Largest errors are of few elements: those of several draws are less of an accident."""

Errors = tuple[float, float]
"""The largest error, and the mean error."""


def errors(results: list[list[torch.Tensor]], cases: list[Case]) -> dict[str, Errors]:
    """Errors of out, dq, dk and dv against float64 over several cases."""
    apart = [
        [
            (result.double() - exact).abs()
            for result, exact in zip(each, expected(case), strict=True)
        ]
        for each, case in zip(results, cases, strict=True)
    ]
    return {
        name: (
            max(parts[at].max().item() for parts in apart),
            sum(parts[at].mean().item() for parts in apart) / len(apart),
        )
        for at, name in enumerate(NAMES)
    }


@pytest.mark.parametrize("dims", LAYOUTS, ids=layout_name)
def test_bfloat16_errors_are_at_most_twice_one_process(
    ranks: RankGroups, dims: ParallelDims
) -> None:
    for case in CASES:
        draws = [replace(case, seed=seed) for seed in SEEDS]
        alone = one_process_errors(ranks, case)
        together = errors(across_ranks(ranks, dims, draws), draws)
        for name in NAMES:
            for found, allowed in zip(together[name], alone[name], strict=True):
                assert 0 < found <= 2 * allowed, f"{case}: {name} {together} {alone}"


@cache
def one_process_errors(ranks: RankGroups, case: Case) -> dict[str, Errors]:
    """Errors of the same kernel in one process."""
    draws = [replace(case, seed=seed) for seed in SEEDS]
    return errors(across_ranks(ranks, ONE_PROCESS, draws), draws)


@pytest.mark.parametrize("dims", LAYOUTS, ids=layout_name)
def test_deterministic_calls_repeat_bitwise(ranks: RankGroups, dims: ParallelDims) -> None:
    """Gradients that several ranks send are added in one order, not as they arrive."""
    cases = [
        replace(case, heads=heads, deterministic=True, document_lengths=documents)
        for case in CASES
        for heads in ((6, 2), (3, 1))
        for documents in (None, (100, 57, 100))
    ]
    first, *others = (across_ranks(ranks, dims, cases) for _ in range(3))
    for other in others:
        for case, once, again in zip(cases, first, other, strict=True):
            for name, a, b in zip(NAMES, once, again, strict=True):
                assert torch.equal(a, b), f"{dims} {case}: {name}"
