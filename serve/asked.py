"""What a client asks for, in the words of OpenAI's videos API, as a request of ours."""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from longtake.configs.request import VideoRequest
from longtake.errors import RefusedInputError, RequestError, one_line
from longtake.pipelines.spec import ModelSpec

OF_OPENAI = ("model", "seconds", "size", "input_reference")
NOT_OF_CLIENTS = ("image", "image_sha256")
"""Names of files of the server."""
OWN_FIELDS = tuple(name for name in VideoRequest.model_fields if name not in NOT_OF_CLIENTS)

_SIZE = re.compile(r"(\d{1,5})x(\d{1,5})", re.ASCII)
_DATA_URL = re.compile(r"data:image/[a-z.+-]{1,40};base64,", re.ASCII)
_LONGEST_LIST = 10_000
_MOST_FIELDS = 64


class FieldError(RequestError):
    """A field of a request that cannot be as it is.

    Attributes:
        param: its name, as the client knows it; None of the whole.
        code: for programs; None where the message says all.
    """

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


@dataclass(frozen=True)
class Asked:
    """What a client asks for.

    Attributes:
        request: without its picture.
        picture: a file's content, of a format that was not looked at.
    """

    request: VideoRequest
    picture: bytes | None


def asked_of(values: Mapping[str, Any], upload: bytes | None, model: str, spec: ModelSpec) -> Asked:
    """Check what a client sent, but for what the model has to say of it.

    Args:
        values: by name: of a JSON body, or the texts of a form.
        upload: the picture, where it came as a file.
        model: that is served.
        spec: of it.

    Raises:
        FieldError: a field cannot be as it is.
    """
    if len(values) > _MOST_FIELDS:
        raise FieldError(f"{len(values)} fields: {_MOST_FIELDS} at most")
    given = {name: value for name, value in values.items() if value is not None}
    for name in given:
        if name not in (*OWN_FIELDS, *OF_OPENAI):
            raise FieldError(f"{name[:60]!r} is not an option: leave it out", name[:60])
    named = given.pop("model", model)
    if named != model:
        shown = str(named)[:60]
        raise FieldError(
            f"model={shown!r} is not served here: use {model}, or leave it out",
            "model",
            "model_not_found",
        )
    picture = _picture(given.pop("input_reference", None), upload)
    own = {name: _unfolded(name, value) for name, value in given.items() if name in OWN_FIELDS}
    own.update(_size(given))
    request = _validated(own)
    if "seconds" in given:
        if request.num_frames is not None:
            raise FieldError("seconds with num_frames: leave one of them out", "seconds")
        frames = _frames(given["seconds"], request.fps or spec.defaults.fps, spec)
        request = request.model_copy(update={"num_frames": frames})
    return Asked(request, picture)


def refused(error: RefusedInputError, values: Mapping[str, Any]) -> FieldError:
    """What the engine refused, with the field that it names at its start."""
    if isinstance(error, FieldError):
        return error
    message = str(error)
    named = re.match(r"(\w+)=", message)
    param = named[1] if named else None
    if param == "image":
        message = re.sub(r"""^image=(?:'[^']*'|"[^"]*")""", "input_reference", message)
        param = "input_reference"
    elif param in ("height", "width") and values.get("size") is not None:
        param = "size"
    elif param == "num_frames" and values.get("seconds") is not None:
        param = "seconds"
    known = param in (*OWN_FIELDS, *OF_OPENAI)
    return FieldError(message, param if known else None)


def _validated(values: dict[str, Any]) -> VideoRequest:
    try:
        return VideoRequest(**values)
    except ValidationError as error:
        first = error.errors()[0]["loc"]
        raise FieldError(one_line(error), str(first[0]) if first else None) from error


def _unfolded(name: str, value: Any) -> Any:
    """A list or an object that stands as JSON in a form's text."""
    listed = "tuple" in str(VideoRequest.model_fields[name].annotation) or name.endswith("template")
    if listed and isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise FieldError(f"{name}={value[:60]!r} must be JSON", name) from error
    if isinstance(value, dict) and len(value) > _MOST_FIELDS:
        raise FieldError(f"{name} has {len(value)} fields: {_MOST_FIELDS} at most", name)
    if listed and isinstance(value, list) and len(value) > _LONGEST_LIST:
        raise FieldError(f"{name} has {len(value)} values: {_LONGEST_LIST} at most", name)
    return value


def _size(given: Mapping[str, Any]) -> dict[str, int]:
    if "size" not in given:
        return {}
    for name in ("height", "width"):
        if name in given:
            raise FieldError(f"size with {name}: leave one of them out", "size")
    found = _SIZE.fullmatch(given["size"]) if isinstance(given["size"], str) else None
    if found is None:
        shown = repr(given["size"])[:60]
        raise FieldError(f"size={shown} must be WIDTHxHEIGHT in pixels, 1280x720 say", "size")
    width, height = map(int, found.groups())
    for name, value in (("width", width), ("height", height)):
        if not 1 <= value <= 16384:
            raise FieldError(f"size={given['size']!r}: its {name} must be 1 to 16384", "size")
    return {"width": width, "height": height}


def _frames(seconds: Any, fps: float, spec: ModelSpec) -> int:
    """The number of frames that a model can have which is nearest to a time."""
    shown = repr(seconds)[:60]
    try:
        value = float(seconds) if isinstance(seconds, str | int | float) else math.nan
    except (ValueError, OverflowError):
        value = math.nan
    if isinstance(seconds, bool) or not 0 < value < math.inf:
        raise FieldError(f"seconds={shown} must be a number above 0", "seconds")
    multiple, dropped = spec.frames_multiple, spec.dropped_frames
    if value * fps > 16384:
        raise FieldError(
            f"seconds={shown} are more than 16384 frames at {fps:g} a second", "seconds"
        )
    frames = multiple * max(0, round((value * fps + dropped - 1) / multiple)) + 1
    while frames <= dropped:
        frames += multiple
    return min(frames, 16384 - (16384 - 1) % multiple)


def _picture(reference: Any, upload: bytes | None) -> bytes | None:
    """The bytes of the picture. No URL and no path is ever opened."""
    if upload is not None or reference is None:
        return upload
    if isinstance(reference, dict):
        if set(reference) != {"image_url"}:
            raise FieldError(
                "input_reference must hold image_url, with a data URL: files are not kept here",
                "input_reference",
            )
        reference = reference["image_url"]
    found = _DATA_URL.match(reference) if isinstance(reference, str) else None
    if found is None:
        raise FieldError(
            "input_reference must be a file of the form, or a data URL "
            "(data:image/png;base64,...): nothing else is fetched",
            "input_reference",
        )
    try:
        return base64.b64decode(reference[found.end() :], validate=True)
    except (binascii.Error, ValueError) as error:
        raise FieldError(
            "input_reference is no base64: encode it again", "input_reference"
        ) from error
