"""Height, width and frames of a request, from whatever says them: pixels, a resolution, a shape, a
picture, or a length in seconds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

from longtake.configs.request import Rendering, VideoRequest
from longtake.configs.sizes import MAX_FRAMES, MAX_PIXELS, ratio_of, sides_of
from longtake.errors import RequestError
from longtake.pipelines.spec import ModelSpec

if TYPE_CHECKING:
    from longtake.engine.media.picture import CheckedPicture

_LONGEST_SHAPE = 4
"""Of a side that follows from a picture over the other: as in HunyuanVideo-I2V's own buckets."""

_SAME_SHAPE = 0.05
"""By how much, of a shape, a size of the model's own may miss the one that was asked for."""


def size_of(request: Rendering, spec: ModelSpec, picture: CheckedPicture | None) -> tuple[int, int]:
    """Height and width: as they were asked for, else in the shape that was asked for, else in the
    picture's, else the model's own.

    With no side asked for, the resolution is the one that was, else the one whose number of pixels
    is nearest to the picture's, else as many pixels as the model's default has. Of the model's own
    sizes of that resolution, it is the one whose shape is nearest. No side that follows from a
    picture becomes more than four times the other.

    Raises:
        RequestError: a side would have too many pixels.
    """
    height, width, defaults = request.height, request.width, spec.defaults
    resolution = ratio = None
    if isinstance(request, VideoRequest):
        resolution, ratio = request.resolution, request.aspect_ratio
        if request.size is not None:
            width, height = sides_of(request.size)
    if (height and width) or (picture is None and resolution is None and ratio is None):
        return height or defaults.height, width or defaults.width
    shape = defaults.width / defaults.height
    if ratio is not None:
        shape = ratio_of(ratio)
    elif picture is not None:
        high, wide = picture.size
        shape = min(max(wide / high, 1 / _LONGEST_SHAPE), _LONGEST_SHAPE)
    if height:
        return height, _near(height * shape, spec)
    if width:
        return _near(width / shape, spec), width
    if resolution is not None:
        own = defaults.sizes.get(resolution, ())
        short = int(resolution.removesuffix("p"))
        area = short * short * max(shape, 1 / shape)
    else:
        area = defaults.height * defaults.width
        nearest_to = area if ratio is not None or picture is None else math.prod(picture.size)
        own = min(
            defaults.sizes.values(),
            key=lambda sizes: min(abs(math.log(h * w / nearest_to)) for h, w in sizes),
            default=(),
        )
    if found := _own_size(own, shape, any_shape=ratio is None):
        return found
    side = math.sqrt(area / shape)
    return _near(side, spec), _near(side * shape, spec)


def _own_size(
    sizes: Iterable[tuple[int, int]], shape: float, *, any_shape: bool
) -> tuple[int, int] | None:
    """The size of nearest shape.

    Args:
        any_shape: however far that is.
    """

    def off(size: tuple[int, int]) -> float:
        return abs(math.log(size[1] / size[0] / shape))

    found = min(sizes, key=off, default=None)
    return found if found and (any_shape or off(found) <= _SAME_SHAPE) else None


def _near(pixels: float, spec: ModelSpec) -> int:
    """What the model can have that is nearest to a side; one of its multiples at least."""
    if pixels >= MAX_PIXELS + 0.5:
        raise RequestError(
            f"the longer side would have {pixels:.0f} pixels, {MAX_PIXELS} at most: take a smaller "
            "resolution, or a shape that is less long"
        )
    multiple = spec.size_multiple
    return max(1, min(MAX_PIXELS // multiple, math.floor(pixels / multiple + 0.5))) * multiple


def frames_of(request: Rendering, spec: ModelSpec) -> int:
    """The number of frames: as it was asked for, else the one nearest to the seconds that the model
    can have, else the model's own.

    Raises:
        RequestError: the seconds have too many frames.
    """
    seconds = request.seconds if isinstance(request, VideoRequest) else None
    if seconds is None:
        return request.num_frames or spec.defaults.num_frames
    fps = request.fps or spec.defaults.fps
    if seconds * fps > MAX_FRAMES:
        raise RequestError(
            f"seconds={seconds:g} are more than {MAX_FRAMES} frames at {fps:g} a second"
        )
    multiple, dropped = spec.frames_multiple, spec.dropped_frames
    frames = multiple * max(0, round((seconds * fps + dropped - 1) / multiple)) + 1
    while frames <= dropped:
        frames += multiple
    return min(frames, MAX_FRAMES - (MAX_FRAMES - 1) % multiple)


def in_pixels(request: VideoRequest, spec: ModelSpec) -> VideoRequest:
    """The same request with its size in pixels and its seconds in frames.

    Raises:
        RequestError: the seconds have too many frames.
    """
    plain: dict[str, int | None] = {}
    if request.size is not None:
        width, height = sides_of(request.size)
        plain |= {"size": None, "width": width, "height": height}
    if request.seconds is not None:
        plain |= {"seconds": None, "num_frames": frames_of(request, spec)}
    return request.model_copy(update=plain) if plain else request
