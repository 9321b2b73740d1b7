"""Recognises what a video of one shape shows, from its pixels alone.

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

_MIN_CONTRAST = 0.17
"""A pixel belongs to the shape if a channel differs from the background by more than this."""

_MAX_COLOR_DISTANCE = 0.3
"""Maximum Euclidean distance of a color from the color that it is named after."""

_MIN_AREA = 0.01
"""Minimum share of the frame that a shape covers; below, the frame is blank."""

_MIN_TRAVEL = 0.06
"""Minimum movement of a shape as a share of the frame's size; below, the video is static."""

_BLURS = (0.0, 0.12, 0.2)
"""Standard deviations of blur, in radii of the shape: an autoencoder blurs low contrast."""
_RING_BLURS = (*_BLURS, 0.28)
"""Blurs of a ring, whose hole identifies it, however small."""

_GRID = 96
"""Cells of the grid that outlines are drawn on; it is three radii wide."""

_MIN_IOU = 0.7
"""Minimum intersection over union with the outline of a shape to be recognised as it."""


@dataclass(frozen=True)
class Verdict:
    """What a video shows; None if it is not recognised.

    Attributes:
        color: Name of the shape's color.
        shape: Name of the shape.
        direction: Direction in which it moves.
        background: Name of the background's color.
        blank: Whether a frame has no shape.
        static: Whether nothing moves.
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
    background_color = np.median(border, axis=0)
    background = _nearest(background_color, BACKGROUNDS)
    contrast = np.abs(frames - background_color).max(-1)
    masks = contrast > _MIN_CONTRAST
    if masks.mean((1, 2)).min() < _MIN_AREA:
        return Verdict(None, None, None, background, blank=True, static=True)
    solid = contrast > np.median(contrast[masks]) / 2  # edges at half contrast, however blurred
    direction = _direction(masks)
    return Verdict(
        _nearest(np.median(frames[solid], axis=0), COLORS),
        _shape(solid),
        direction,
        background,
        static=direction is None,
    )


def _nearest(color: npt.NDArray[np.floating], names: dict[str, Color]) -> str | None:
    distances = {name: float(np.linalg.norm(color - np.array(names[name]) / 255)) for name in names}
    name = min(distances, key=distances.__getitem__)
    return name if distances[name] <= _MAX_COLOR_DISTANCE else None


def _direction(masks: Mask) -> str | None:
    """The direction of the shape's center, if it moves far enough and along one axis."""
    centers = np.array([[where.mean() for where in mask.nonzero()] for mask in masks])
    at = np.arange(len(masks))
    down, right = np.polyfit(at, centers, 1)[0] * (len(masks) - 1)
    (height, width), along = masks.shape[1:], max(abs(down), abs(right))
    if along < _MIN_TRAVEL * min(height, width) or along < 2 * min(abs(down), abs(right)):
        return None
    step = (int(np.sign(right)), 0) if abs(right) > abs(down) else (0, int(np.sign(down)))
    return next(name for name, of_name in DIRECTIONS.items() if of_name == step)


def _shape(masks: Mask) -> str | None:
    """The shape whose outline fits best, on average over all frames."""
    ious = np.mean([_ious(mask) for mask in masks], axis=0)
    return SHAPES[int(ious.argmax())] if ious.max() >= _MIN_IOU else None


def _ious(mask: Mask) -> list[float]:
    """Intersection over union with each of :data:`SHAPES`, sharp or blurred, in the same box."""
    rows, columns = ((mask.sum(axis) >= 2).nonzero()[0] for axis in (1, 0))
    if len(rows) == 0 or len(columns) == 0:
        return [0.0] * len(SHAPES)
    box = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    found = []
    for name in SHAPES:
        outlines = [_resized(outline, box.shape) for outline in _outlines(name)]
        found.append(max(float((box & each).sum() / (box | each).sum()) for each in outlines))
    return found


@cache
def _outlines(name: str) -> list[Mask]:
    """Outlines of a shape in its box, by increasing blur: where it exceeds half of its maximum."""
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
    for blur in _RING_BLURS if name == "ring" else _BLURS:
        kernel = np.exp(-(at**2) / (2 * blur**2)) if blur else (abs(at) < 1.6 / _GRID).astype(float)
        soft = shape
        for axis in (0, 1):
            soft = np.apply_along_axis(np.convolve, axis, soft, kernel / kernel.sum(), "same")
        outline = soft >= soft.max() / 2
        rows, columns = (outline.any(axis).nonzero()[0] for axis in (1, 0))
        found.append(outline[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
    return found


def _resized(outline: Mask, size: tuple[int, ...]) -> Mask:
    """An outline, resized to a box."""
    rows, columns = (
        ((np.arange(new) + 0.5) / new * old).astype(int)
        for new, old in zip(size, outline.shape, strict=True)
    )
    return outline[np.ix_(rows, columns)]
