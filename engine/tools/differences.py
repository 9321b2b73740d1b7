"""Measures of the difference between two arrays, in float64 and piece by piece to save memory."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from longtake.engine.media.arrays import Array

_PIECE = 2**20
"""Values compared at once."""

_quiet = np.errstate(all="ignore")
"""Infinity minus infinity is NaN, which the result reports."""


@_quiet
def max_error(values: Array, expected: Array) -> float:
    """The largest absolute difference; NaN if any difference is NaN."""
    return float(np.max([np.max(np.abs(own - other)) for own, other in _pieces(values, expected)]))


@_quiet
def psnr_db(values: Array, expected: Array, peak: float | None = None) -> float:
    """Peak signal-to-noise ratio in dB.

    Args:
        values: The array.
        expected: The reference.
        peak: Peak signal, 1 for frames in [0, 1]; None uses the range of the reference.

    Returns:
        Infinity if the arrays are equal; NaN if any value is not finite.
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
    """The largest ``|values - expected| / (rms + |expected|)``; NaN if any difference is NaN.

    ``rms`` is the root mean square of the reference. A block's output may hold a few values that
    are much larger than the others; they may differ by more, in proportion.
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
    """Corresponding pieces of both arrays, in float64."""
    assert values.shape == expected.shape
    own, other = values.reshape(-1), expected.reshape(-1)
    for start in range(0, own.size, _PIECE):
        piece = slice(start, start + _PIECE)
        yield own[piece].astype(np.float64), other[piece].astype(np.float64)
