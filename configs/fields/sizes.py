"""Shorthands for sizes and lengths: 1280x720, 720p, 16:9, 5 seconds."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, WithJsonSchema

from longtake.configs.field_types import MAX_PIXELS

_SIZE = re.compile(r"\s*(\d{1,5})\s*[xX×*]\s*(\d{1,5})\s*", re.ASCII)
_RESOLUTION = re.compile(r"\s*0*([1-9]\d{0,4})\s*[pP]?\s*", re.ASCII)
_RATIO = re.compile(
    r"\s*(\d{1,5}(?:\.\d{1,9})?)\s*(?:[:/xX×]\s*(\d{1,5}(?:\.\d{1,9})?)\s*)?", re.ASCII
)
_MAX_RATIO = 16

SHORTHANDS = frozenset(("size", "resolution", "aspect_ratio", "seconds"))
"""Request fields that replace height, width or num_frames."""

SHORTHANDS_OF = {
    **dict.fromkeys(("height", "width"), ("size", "resolution", "aspect_ratio")),
    "num_frames": ("seconds",),
}
"""The shorthands that set a field."""

_OVERRIDES = {
    "size": ("height", "width", "resolution", "aspect_ratio"),
    "resolution": ("height", "width", "size"),
    "aspect_ratio": ("height", "width", "size"),
    "height": ("resolution",),
    "width": ("resolution",),
    "seconds": ("num_frames",),
    "num_frames": ("seconds",),
}
"""Fields that a field of a source of higher precedence removes, such as a flag over a file."""


def merge_fields(lower: Mapping[str, Any], upper: Mapping[str, Any]) -> dict[str, Any]:
    """Merge request fields with those of a source of higher precedence.

    A height or width in ``upper`` keeps the other side of a size in ``lower``.

    Args:
        lower: Fields of the source of lower precedence.
        upper: Fields of the source of higher precedence.
    """
    values = dict(lower)
    if upper.keys() & {"height", "width"} and (sides := _sides(values.get("size"))):
        del values["size"]
        values = {**dict(zip(("width", "height"), sides, strict=True)), **values}
    if {"height", "width"} <= upper.keys():
        values.pop("aspect_ratio", None)
    for name in upper:
        for replaced in _OVERRIDES.get(name, ()):
            values.pop(replaced, None)
    return {**values, **upper}


def sides_of(size: str) -> tuple[int, int]:
    """Parse WIDTHxHEIGHT; return width and height.

    Raises:
        ValueError: The text has another form, or a side is out of range.
    """
    sides = _sides(size)
    if sides is None:
        raise ValueError("must be WIDTHxHEIGHT in pixels, such as 1280x720")
    for name, value in zip(("width", "height"), sides, strict=True):
        if not 1 <= value <= MAX_PIXELS:
            raise ValueError(f"must have a {name} of 1 to {MAX_PIXELS}")
    return sides


def ratio_of(aspect_ratio: str) -> float:
    """Parse an aspect ratio; return width over height.

    Raises:
        ValueError: The text has another form, or the ratio is out of range.
    """
    found = _RATIO.fullmatch(aspect_ratio)
    wide, high = (float(each or 1) for each in found.groups()) if found else (0.0, 0.0)
    if not wide or not high:
        raise ValueError("must be WIDTH:HEIGHT or a number, such as 16:9 or 1.85")
    if not 1 / _MAX_RATIO <= wide / high <= _MAX_RATIO:
        raise ValueError(f"must be 1:{_MAX_RATIO} to {_MAX_RATIO}:1")
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
        raise ValueError(f"must be the shorter side, such as 480p, 720p or 1080p{way_out}")
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
