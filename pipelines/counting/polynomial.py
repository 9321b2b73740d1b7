"""Exact polynomials in a rank's tokens and the tokens of the text; without torch.

Legend: s a rank's tokens of the split sequence, L tokens of the whole text.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

Polynomial = tuple[float, ...]
"""Coefficients of 1, s, L, s L, L^2; the trailing ones may be left out."""

NUM_TERMS = 5


def terms(num_tokens: int, num_text_tokens: int) -> tuple[int, ...]:
    """1, s, L, s L and L^2."""
    s, length = num_tokens, num_text_tokens
    return 1, s, length, s * length, length * length


def evaluate(polynomial: Polynomial, num_tokens: int, num_text_tokens: int = 0) -> float:
    """The value at s and L."""
    return sum(
        coefficient * term
        for coefficient, term in zip(polynomial, terms(num_tokens, num_text_tokens), strict=False)
    )


def fit(points: Sequence[tuple[int, int]], values: Sequence[int]) -> Polynomial:
    """The polynomial through values at as many points; it has one term a point.

    Args:
        points: Pairs of s and L.
        values: The value at each point.

    Raises:
        ValueError: The points do not determine a polynomial.
    """
    size = len(points)
    rows = [
        [*map(Fraction, terms(*point)[:size]), Fraction(value)]
        for point, value in zip(points, values, strict=True)
    ]
    for column in range(size):
        pivot = next((row for row in range(column, size) if rows[row][column]), None)
        if pivot is None:
            raise ValueError(f"the points {list(points)} do not determine {size} coefficients")
        rows[column], rows[pivot] = rows[pivot], rows[column]
        lead = [value / rows[column][column] for value in rows[column]]
        rows = [
            lead
            if row == column
            else [
                each - rows[row][column] * first
                for each, first in zip(rows[row], lead, strict=True)
            ]
            for row in range(size)
        ]
    return tuple(float(row[-1]) for row in rows)
