"""Height, width and number of frames of a request, which may give pixels, a resolution, an aspect
ratio, a picture, or seconds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

from longtake.configs.field_types import MAX_FRAMES, MAX_PIXELS
from longtake.configs.fields.sizes import ratio_of, sides_of
from longtake.configs.request import Rendering, VideoRequest
from longtake.errors import RequestError
from longtake.pipelines.spec import ModelSpec

if TYPE_CHECKING:
    from longtake.engine.media.pictures.picture import CheckedPicture

_MAX_ASPECT_RATIO = 4
"""Limit of sizes that follow from a picture."""

_ASPECT_RATIO_TOLERANCE = 0.05
"""Relative difference up to which one of the model's own sizes has the requested aspect ratio."""


def resolve_size(
    request: Rendering, spec: ModelSpec, picture: CheckedPicture | None
) -> tuple[int, int]:
    """Height and width.

    Sides that the request gives are kept. The aspect ratio is the requested one, else the
    picture's (limited to 4:1), else that of the model's default size. If no side is given, the
    number of pixels is that of the requested resolution, else the picture's, else that of the
    model's default size, and one of the model's own sizes near that is preferred: the one with the
    nearest aspect ratio.

    Args:
        request: The request.
        spec: The model's specification.
        picture: The picture that is animated; None without one.

    Raises:
        RequestError: A side would have too many pixels.
    """
    defaults, (height, width) = spec.defaults, _requested_sides(request)
    resolution = ratio = None
    if isinstance(request, VideoRequest):
        resolution, ratio = request.resolution, request.aspect_ratio
    if (height and width) or (picture is None and resolution is None and ratio is None):
        return height or defaults.height, width or defaults.width
    aspect = _aspect(ratio, picture, spec)
    if height:
        return height, _nearest_multiple(height * aspect, spec)
    if width:
        return _nearest_multiple(width / aspect, spec), width
    if resolution is not None:
        own_sizes = defaults.sizes.get(resolution, ())
        short = int(resolution.removesuffix("p"))
        area = short * short * max(aspect, 1 / aspect)
    else:
        area = num_pixels = defaults.height * defaults.width
        if ratio is None and picture is not None:
            num_pixels = math.prod(picture.size)
        own_sizes = _own_sizes_near(num_pixels, spec)
    if found := _own_size(own_sizes, aspect, any_aspect=ratio is None):
        return found
    side = math.sqrt(area / aspect)
    return _nearest_multiple(side, spec), _nearest_multiple(side * aspect, spec)


def _requested_sides(request: Rendering) -> tuple[int | None, int | None]:
    """The requested height and width, as far as the request gives them in pixels."""
    if isinstance(request, VideoRequest) and request.size is not None:
        width, height = sides_of(request.size)
        return height, width
    return request.height, request.width


def _aspect(ratio: str | None, picture: CheckedPicture | None, spec: ModelSpec) -> float:
    """Width over height: the requested ratio, else the picture's, else the model's."""
    if ratio is not None:
        return ratio_of(ratio)
    if picture is not None:
        height, width = picture.size
        return min(max(width / height, 1 / _MAX_ASPECT_RATIO), _MAX_ASPECT_RATIO)
    return spec.defaults.width / spec.defaults.height


def _own_sizes_near(num_pixels: int, spec: ModelSpec) -> tuple[tuple[int, int], ...]:
    """The model's own sizes of the resolution nearest to a number of pixels."""
    return min(
        spec.defaults.sizes.values(),
        key=lambda sizes: min(abs(math.log(h * w / num_pixels)) for h, w in sizes),
        default=(),
    )


def _own_size(
    sizes: Iterable[tuple[int, int]], aspect: float, *, any_aspect: bool
) -> tuple[int, int] | None:
    """The size with the nearest aspect ratio; None if none is within the tolerance.

    Args:
        sizes: Heights and widths.
        aspect: Width over height.
        any_aspect: Ignore the tolerance.
    """

    def distance(size: tuple[int, int]) -> float:
        return abs(math.log(size[1] / size[0] / aspect))

    found = min(sizes, key=distance, default=None)
    return found if found and (any_aspect or distance(found) <= _ASPECT_RATIO_TOLERANCE) else None


def _nearest_multiple(pixels: float, spec: ModelSpec) -> int:
    """The side nearest to a number of pixels that the model supports."""
    if pixels >= MAX_PIXELS + 0.5:
        raise RequestError(
            f"the longer side would have {pixels:.0f} pixels, {MAX_PIXELS} at most: take a smaller "
            "resolution, or a shape that is less long"
        )
    multiple = spec.size_multiple
    return max(1, min(MAX_PIXELS // multiple, math.floor(pixels / multiple + 0.5))) * multiple


def resolve_num_frames(request: Rendering, spec: ModelSpec) -> int:
    """The number of frames: the requested one, else the supported one nearest to the requested
    seconds, else the model's default.

    Raises:
        RequestError: The seconds are too many frames.
    """
    seconds = request.seconds if isinstance(request, VideoRequest) else None
    if seconds is None:
        return request.num_frames or spec.defaults.num_frames
    fps = request.fps or spec.defaults.fps
    if seconds * fps > MAX_FRAMES:
        raise RequestError(
            f"seconds={seconds:g} are more than {MAX_FRAMES} frames at {fps:g} a second"
        )
    multiple, dropped, fewest = spec.frames_multiple, spec.dropped_frames, spec.fewest_frames
    frames = multiple * max(0, round((seconds * fps + dropped - fewest) / multiple)) + fewest
    while frames <= dropped:
        frames += multiple
    return min(frames, MAX_FRAMES - (MAX_FRAMES - fewest) % multiple)


def expand_size(request: VideoRequest, spec: ModelSpec) -> VideoRequest:
    """The same request with its size as width and height, and its seconds as frames.

    Raises:
        RequestError: The seconds are too many frames.
    """
    fields: dict[str, int | None] = {}
    if request.size is not None:
        width, height = sides_of(request.size)
        fields |= {"size": None, "width": width, "height": height}
    if request.seconds is not None:
        fields |= {"seconds": None, "num_frames": resolve_num_frames(request, spec)}
    return request.model_copy(update=fields) if fields else request
