"""Reads off a video's pixels what it shows. It knows the names of colors and shapes, and no seed.

Legend: F frames, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from training.demo.scenes import BACKGROUNDS, COLORS, DIRECTIONS, SHAPES, Color

Array = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

_FAR = 0.17
"""A pixel belongs to the shape where some channel differs by this from the background."""

_LIKE = 0.3
"""A color is at most so far from the one it is called by: the length of the difference."""

_SMALLEST = 0.01
"""Part of the frame that a shape covers at least; else the frame is blank."""

_SHORTEST_WAY = 0.06
"""Part of the frame's size that a shape moves at least; else the video is static."""

_BLURS = (0.0, 0.12, 0.2)
"""Deviations of a blur over a shape's radius: so an autoencoder leaves what has little contrast."""
_BLURS_OF_A_RING = (*_BLURS, 0.28)
"""Its hole tells it from all others, however small."""

_GRID = 96
"""Cells that outlines are drawn on, three radii wide."""

_LIKENESS = 0.7
"""Intersection over union with a shape's outline, at least, to be called by its name."""


@dataclass(frozen=True)
class Verdict:
    """What a video shows; None where it cannot be told.

    Attributes:
        blank: no shape in one of the frames.
        static: nothing moves.
    """

    color: str | None
    shape: str | None
    direction: str | None
    background: str | None
    blank: bool = False
    static: bool = False


def judge(frames: Array) -> Verdict:
    """Judge a video of one shape.

    Args:
        frames: ``[F, H, W, 3]`` in [0, 1].
    """
    border = np.concatenate(
        [frames[:, edge].reshape(-1, 3) for edge in (0, -1)]
        + [frames[:, :, edge].reshape(-1, 3) for edge in (0, -1)]
    )
    behind = np.median(border, axis=0)
    background = _nearest(behind, BACKGROUNDS)
    contrast = np.abs(frames - behind).max(-1)
    masks = contrast > _FAR
    if masks.mean((1, 2)).min() < _SMALLEST:
        return Verdict(None, None, None, background, blank=True, static=True)
    solid = contrast > np.median(contrast[masks]) / 2  # halfway across edges, however blurred
    direction = _direction(masks)
    return Verdict(
        _nearest(np.median(frames[solid], axis=0), COLORS),
        _shape(solid),
        direction,
        background,
        static=direction is None,
    )


def _nearest(seen: npt.NDArray[np.floating], names: dict[str, Color]) -> str | None:
    far = {name: float(np.linalg.norm(seen - np.array(names[name]) / 255)) for name in names}
    name = min(far, key=far.__getitem__)
    return name if far[name] <= _LIKE else None


def _direction(masks: Mask) -> str | None:
    """The way of the shape's middle, if it is long enough and along one axis."""
    middles = np.array([[where.mean() for where in mask.nonzero()] for mask in masks])
    at = np.arange(len(masks))
    down, right = np.polyfit(at, middles, 1)[0] * (len(masks) - 1)
    (height, width), along = masks.shape[1:], max(abs(down), abs(right))
    if along < _SHORTEST_WAY * min(height, width) or along < 2 * min(abs(down), abs(right)):
        return None
    way = (int(np.sign(right)), 0) if abs(right) > abs(down) else (0, int(np.sign(down)))
    return next(name for name, of_name in DIRECTIONS.items() if of_name == way)


def _shape(masks: Mask) -> str | None:
    """The shape whose outline is most like what is shown, over all frames."""
    likeness = np.mean([_likeness(mask) for mask in masks], axis=0)
    return SHAPES[int(likeness.argmax())] if likeness.max() >= _LIKENESS else None


def _likeness(mask: Mask) -> list[float]:
    """Intersection over union with each of :data:`SHAPES` in the same box, sharp or blurred."""
    rows, columns = ((mask.sum(axis) >= 2).nonzero()[0] for axis in (1, 0))
    if len(rows) == 0 or len(columns) == 0:
        return [0.0] * len(SHAPES)
    box = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    found = []
    for name in SHAPES:
        outlines = [_scaled(outline, box.shape) for outline in _outlines(name)]
        found.append(max(float((box & each).sum() / (box | each).sum()) for each in outlines))
    return found


@cache
def _outlines(name: str) -> list[Mask]:
    """A shape's outline in its box, ever more blurred: what is left of it halfway up its edges."""
    at = (np.arange(_GRID) + 0.5) / _GRID * 3 - 1.5
    x, y = at[None], at[:, None]
    radius = np.hypot(x, y)
    shape = {
        "circle": radius <= 1,
        "square": np.maximum(abs(x), abs(y)) <= 1,
        "triangle": (y <= 0.72) & (0.866 * abs(x) - 0.5 * y <= 0.5),
        "ring": (radius <= 1) & (radius >= 0.48),
    }[name].astype(np.float64)
    found = []
    for blur in _BLURS_OF_A_RING if name == "ring" else _BLURS:
        kernel = np.exp(-(at**2) / (2 * blur**2)) if blur else (abs(at) < 1.6 / _GRID).astype(float)
        soft = shape
        for axis in (0, 1):
            soft = np.apply_along_axis(np.convolve, axis, soft, kernel / kernel.sum(), "same")
        outline = soft >= soft.max() / 2
        rows, columns = (outline.any(axis).nonzero()[0] for axis in (1, 0))
        found.append(outline[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
    return found


def _scaled(outline: Mask, size: tuple[int, ...]) -> Mask:
    """An outline in a box of another size."""
    rows, columns = (
        ((np.arange(new) + 0.5) / new * old).astype(int)
        for new, old in zip(size, outline.shape, strict=True)
    )
    return outline[np.ix_(rows, columns)]
