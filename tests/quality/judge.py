"""Reads off a video's pixels what it shows. It knows the names of colors and shapes, and no seed.

Legend: F frames, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

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


def psnr_db(shown: Array, meant: Array) -> float:
    """How like two pictures are, ``[H, W, 3]`` in [0, 1] each; infinite where they are the same."""
    error = float(np.square(shown.astype(np.float64) - meant).mean())
    return float("inf") if error == 0 else -10 * float(np.log10(error))


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
    """Intersection over union with each of :data:`SHAPES` in the same box."""
    rows, columns = ((mask.sum(axis) >= 2).nonzero()[0] for axis in (1, 0))
    if len(rows) == 0 or len(columns) == 0:
        return [0.0] * len(SHAPES)
    box = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    y, x = ((np.arange(size) + 0.5) / size * 2 - 1 for size in box.shape)
    radius = np.hypot(x[None], y[:, None])
    outlines = {
        "circle": radius <= 1,
        "square": np.ones_like(box),
        "triangle": np.abs(x[None]) <= (y[:, None] + 1.3) / 2.3,  # its tip a little blunt
        "ring": (radius <= 1) & (radius >= 0.48),
    }
    return [float((box & outlines[name]).sum() / (box | outlines[name]).sum()) for name in SHAPES]
