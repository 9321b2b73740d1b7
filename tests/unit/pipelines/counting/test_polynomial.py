"""Polynomials through counted values."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longtake.pipelines.counting.polynomial import evaluate, fit, terms

POINTS = [(4744, 64), (75664, 64), (4936, 256), (75856, 256), (5192, 512)]
COEFFICIENTS = st.lists(st.integers(0, 2**40), min_size=5, max_size=5)


@given(COEFFICIENTS, st.integers(0, 200_000), st.integers(0, 1024))
def test_a_polynomial_is_found_from_its_values(
    coefficients: list[int], num_tokens: int, num_text_tokens: int
) -> None:
    def value(*point: int) -> int:
        return sum(a * b for a, b in zip(coefficients, terms(*point), strict=True))

    found = fit(POINTS, [value(*point) for point in POINTS])
    assert found == tuple(coefficients)
    expected = value(num_tokens, num_text_tokens)
    assert evaluate(found, num_tokens, num_text_tokens) == pytest.approx(expected, rel=1e-12)


def test_few_points_find_a_line() -> None:
    line = fit([(10, 7), (30, 7)], [120, 320])
    assert line == (20.0, 10.0)
    assert evaluate(line, 100) == 1020


def test_points_that_determine_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="do not determine 2 coefficients"):
        fit([(10, 7), (10, 9)], [1, 2])
