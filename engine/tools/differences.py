"""How far two arrays are apart, in float64 and a piece at a time: they may be large."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from longtake.engine.arrays import Array

_PIECE = 2**20
"""Values that are compared at once."""

_quiet = np.errstate(all="ignore")
"""Infinity less infinity is no number, and is said to be none."""


@_quiet
def max_error(values: Array, expected: Array) -> float:
    """The largest difference, in float64; NaN where one is no number."""
    return float(np.max([np.max(np.abs(own - other)) for own, other in _pieces(values, expected)]))


@_quiet
def psnr_db(values: Array, expected: Array, peak: float | None = None) -> float:
    """Peak signal to noise ratio, in float64.

    Args:
        peak: None is the range of what is expected; pictures in [0, 1] have 1.

    Returns:
        Infinity where both are the same; NaN where something is no number.
    """
    squares = sum(float(np.sum((own - other) ** 2)) for own, other in _pieces(values, expected))
    if peak is None:
        peak = float(np.max(expected)) - float(np.min(expected))
    if squares == 0:
        return math.inf
    if not math.isfinite(squares) or peak == 0:
        return math.nan
    return 10 * math.log10(peak**2 * values.size / squares)


@_quiet
def relative_error(values: Array, expected: Array) -> float:
    """The largest difference over ``rms + |expected|``, in float64; NaN where one is no number.

    ``rms`` is the root mean square of all that is expected. So a large value, of which a block's
    output may have few, may differ by more than the others, in proportion.
    """
    squares = sum(float(np.sum(other**2)) for _, other in _pieces(values, expected))
    rms, worst = math.sqrt(squares / values.size), []
    for own, other in _pieces(values, expected):
        difference = np.abs(own - other)
        scale = rms + np.abs(other)
        worst.append(np.max(np.divide(difference, scale, out=difference, where=difference != 0)))
    return float(np.max(worst))


def _pieces(
    values: Array, expected: Array
) -> Iterator[tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]]:
    """Both in float64, a piece at a time."""
    assert values.shape == expected.shape
    own, other = values.reshape(-1), expected.reshape(-1)
    for start in range(0, own.size, _PIECE):
        piece = slice(start, start + _PIECE)
        yield own[piece].astype(np.float64), other[piece].astype(np.float64)
