"""Sizes and lengths as people type them: 1280x720, 720p, 16:9, 5 seconds."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, WithJsonSchema

MAX_PIXELS = 16384
MAX_FRAMES = 16384
_SIZE = re.compile(r"\s*(\d{1,5})\s*[xX×*]\s*(\d{1,5})\s*", re.ASCII)
_RESOLUTION = re.compile(r"\s*0*([1-9]\d{0,4})\s*[pP]?\s*", re.ASCII)
_RATIO = re.compile(
    r"\s*(\d{1,5}(?:\.\d{1,9})?)\s*(?:[:/xX×]\s*(\d{1,5}(?:\.\d{1,9})?)\s*)?", re.ASCII
)
_MOST_RATIO = 16

SHORTHANDS = frozenset(("size", "resolution", "aspect_ratio", "seconds"))
"""Fields of a request that say height, width or num_frames in other words."""

SAID_BY = {
    **dict.fromkeys(("height", "width"), ("size", "resolution", "aspect_ratio")),
    "num_frames": ("seconds",),
}
"""The other words for a field."""

_INSTEAD_OF = {
    "size": ("height", "width", "resolution", "aspect_ratio"),
    "resolution": ("height", "width", "size"),
    "aspect_ratio": ("height", "width", "size"),
    "height": ("resolution",),
    "width": ("resolution",),
    "seconds": ("num_frames",),
    "num_frames": ("seconds",),
}
"""Fields that no longer hold where a later source, a flag over a file say, has one of these."""


def over(lower: Mapping[str, Any], upper: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a request, and over them those of a source that counts more.

    One side of the upper is put beside the other side of the lower, be that written as a size.
    """
    values = dict(lower)
    if upper.keys() & {"height", "width"} and (sides := _sides(values.get("size"))):
        del values["size"]
        values = {**dict(zip(("width", "height"), sides, strict=True)), **values}
    if {"height", "width"} <= upper.keys():
        values.pop("aspect_ratio", None)
    for name in upper:
        for replaced in _INSTEAD_OF.get(name, ()):
            values.pop(replaced, None)
    return {**values, **upper}


def sides_of(size: str) -> tuple[int, int]:
    """Width and height of a size.

    Raises:
        ValueError: it is none.
    """
    sides = _sides(size)
    if sides is None:
        raise ValueError("must be WIDTHxHEIGHT in pixels, 1280x720 say")
    for name, value in zip(("width", "height"), sides, strict=True):
        if not 1 <= value <= MAX_PIXELS:
            raise ValueError(f"must have a {name} of 1 to {MAX_PIXELS}")
    return sides


def ratio_of(aspect_ratio: str) -> float:
    """Width over height.

    Raises:
        ValueError: it is none.
    """
    found = _RATIO.fullmatch(aspect_ratio)
    wide, high = (float(each or 1) for each in found.groups()) if found else (0.0, 0.0)
    if not wide or not high:
        raise ValueError("must be WIDTH:HEIGHT, 16:9 say, or a number, 1.85 say")
    if not 1 / _MOST_RATIO <= wide / high <= _MOST_RATIO:
        raise ValueError(f"must be 1:{_MOST_RATIO} to {_MOST_RATIO}:1")
    return wide / high


def _sides(size: Any) -> tuple[int, int] | None:
    found = _SIZE.fullmatch(size) if isinstance(size, str) else None
    return (int(found[1]), int(found[2])) if found else None


def _size(value: object) -> str:
    width, height = sides_of(value if isinstance(value, str) else "")
    return f"{width}x{height}"


def _resolution(value: object) -> str:
    text = str(value) if isinstance(value, str | int) else ""
    found = _RESOLUTION.fullmatch(text)
    if found is None:
        way_out = ": --size takes both sides" if _sides(text) else ""
        raise ValueError(f"must be the shorter side, 480p, 720p or 1080p say{way_out}")
    if int(found[1]) > MAX_PIXELS:
        raise ValueError(f"must be at most {MAX_PIXELS}p")
    return f"{found[1]}p"


def _aspect_ratio(value: object) -> str:
    text = str(value).strip() if isinstance(value, str | int | float) else ""
    ratio_of(text)
    return text


def _seconds(value: object) -> object:
    if isinstance(value, str):
        value = re.sub(r"\s*(s|sec|seconds?)\s*$", "", value, flags=re.IGNORECASE)
    try:
        number = float(value) if isinstance(value, str | int | float) else -1.0
    except (ValueError, OverflowError):
        number = -1.0
    if not 0 < number < float("inf"):
        raise ValueError("must be a number above 0")
    return number


def _text(pattern: str) -> WithJsonSchema:
    return WithJsonSchema({"type": "string", "pattern": pattern})


Size = Annotated[str, BeforeValidator(_size), _text(r"^\d{1,5}x\d{1,5}$")]
Resolution = Annotated[str, BeforeValidator(_resolution), _text(r"^\d{1,5}p?$")]
AspectRatio = Annotated[str, BeforeValidator(_aspect_ratio), _text(r"^[\d.]+(:[\d.]+)?$")]
Length = Annotated[
    float,
    BeforeValidator(_seconds),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "number"}]}),
    Field(gt=0, allow_inf_nan=False),
]
