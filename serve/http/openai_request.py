"""What a client asks for, in the words of OpenAI's videos API, as a request of ours."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from longtake.configs.request import VideoRequest
from longtake.configs.sizes import SAID_BY
from longtake.engine.request_size import in_pixels
from longtake.errors import RefusedInputError, RequestError, field_named, nearly
from longtake.pipelines.spec import ModelSpec
from longtake.serve.queue.job_records import JobRecord

OF_OPENAI = ("model", "input_reference")
NOT_OF_CLIENTS = ("image", "image_sha256")
"""Names of files of the server."""
OWN_FIELDS = tuple(name for name in VideoRequest.model_fields if name not in NOT_OF_CLIENTS)

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
            meant = nearly(name[:60], (*OWN_FIELDS, *OF_OPENAI)) or ": leave it out"
            raise FieldError(f"{name[:60]!r} is not an option{meant}", name[:60])
    named = given.pop("model", model)
    if named != model:
        shown = str(named)[:60]
        raise FieldError(
            f"model={shown!r} is not served here: use {model}, or leave it out",
            "model",
            "model_not_found",
        )
    picture = _picture(given.pop("input_reference", None), upload)
    own = {name: _unfolded(name, value) for name, value in given.items()}
    try:
        return Asked(in_pixels(_validated(own), spec), picture)
    except RequestError as error:
        raise refused(error, values) from error


def request_of(job: JobRecord) -> dict[str, Any]:
    """A job's settings, as a client would send them for the same video again."""
    settings = job.request.model_dump(mode="json", include=set(OWN_FIELDS))
    return {name: value for name, value in settings.items() if value is not None}


def refused(error: RefusedInputError, values: Mapping[str, Any]) -> FieldError:
    """What the engine refused, with the field that it names at its start."""
    if isinstance(error, FieldError):
        return error
    message = str(error)
    param = field_named(message)
    if param == "image":
        message = re.sub(r"""^image=(?:'[^']*'|"[^"]*")""", "input_reference", message)
        param = "input_reference"
    else:  # as the client said it
        said = (name for name in SAID_BY.get(param, ()) if values.get(name) is not None)
        param = next(said, param)
    known = param in (*OWN_FIELDS, *OF_OPENAI)
    return FieldError(message, param if known else None)


def _validated(values: dict[str, Any]) -> VideoRequest:
    try:
        return VideoRequest(**values)
    except RequestError as error:
        raise FieldError(str(error), field_named(str(error)) or None) from error


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
