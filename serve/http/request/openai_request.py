"""Converts requests of OpenAI's videos API to submissions, and errors to its fields."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from typing import Any

from longtake.configs.families import holds_mapping
from longtake.configs.fields.sizes import SHORTHANDS_OF
from longtake.configs.request import PICTURES, VideoRequest
from longtake.engine.resolve.size import expand_size
from longtake.errors import RefusedInputError, RequestError, did_you_mean, leading_field
from longtake.pipelines.spec import ModelSpec
from longtake.serve.queue.job_records import JobRecord
from longtake.serve.service.submission import PICTURE_FIELDS, FieldError, Submission

SERVER_FIELDS = (*PICTURES, *(f"{name}_sha256" for name in (*PICTURES, "lora")))
"""Options that name files on the server, and digests; clients cannot set them."""
_OTHER_FIELDS = ("model", *PICTURE_FIELDS.values())
_OPTIONS = tuple(name for name in VideoRequest.model_fields if name not in SERVER_FIELDS)
_FIELDS = (*_OPTIONS, *_OTHER_FIELDS)

_DATA_URL = re.compile(r"data:image/[a-z.+-]{1,40};base64,", re.ASCII)
_MAX_LIST_LENGTH = 10_000
_MAX_FIELDS = 64


def parse_submission(
    values: Mapping[str, Any], uploads: Mapping[str, bytes], model: str, spec: ModelSpec
) -> Submission:
    """A request and its pictures, checked as far as possible without loading the model.

    Args:
        values: Fields of the JSON body or form, by name.
        uploads: Content of each uploaded picture, by name in the API.
        model: Name of the served model.
        spec: Spec of the served model.

    Raises:
        FieldError: A field is invalid.
    """
    if len(values) > _MAX_FIELDS:
        raise FieldError(f"{len(values)} fields: {_MAX_FIELDS} at most")
    fields = {name: value for name, value in values.items() if value is not None}
    for name in fields:
        if name not in _FIELDS:
            suggestion = did_you_mean(name[:60], _FIELDS) or ": leave it out"
            raise FieldError(f"{name[:60]!r} is not an option{suggestion}", name[:60])
    requested = fields.pop("model", model)
    if requested != model:
        shown = str(requested)[:60]
        raise FieldError(
            f"model={shown!r} is not served here: use {model}, or leave it out",
            "model",
            "model_not_found",
        )
    pictures = {}
    for picture, name in PICTURE_FIELDS.items():
        reference = fields.pop(name, None)
        if name in uploads:
            pictures[picture] = uploads[name]
        elif reference is not None:
            pictures[picture] = _referenced(name, reference)
    options = {name: _decode_option(name, value) for name, value in fields.items()}
    try:
        return Submission(expand_size(_video_request(options), spec), pictures)
    except RequestError as error:
        raise field_error(error, values) from error


def request_fields(job: JobRecord) -> dict[str, Any]:
    """The fields of a request for the same video."""
    settings = job.request.model_dump(mode="json", include=set(_OPTIONS))
    return {name: value for name, value in settings.items() if value is not None}


def field_error(error: RefusedInputError, values: Mapping[str, Any]) -> FieldError:
    """An error of the engine as an error of the field that the client sent.

    Args:
        error: The error; its message starts with the name of an option.
        values: The client's fields: an option that was derived from another field, such as
            ``size``, is reported as that field.
    """
    if isinstance(error, FieldError):
        return error
    message = str(error)
    param = leading_field(message)
    if param in PICTURE_FIELDS:
        name = PICTURE_FIELDS[param]
        message = re.sub(rf"""^{param}=(?:'[^']*'|"[^"]*")""", name, message)
        param = name
    else:
        sent = (name for name in SHORTHANDS_OF.get(param, ()) if values.get(name) is not None)
        param = next(sent, param)
    return FieldError(message, param if param in _FIELDS else None)


def _video_request(options: dict[str, Any]) -> VideoRequest:
    try:
        return VideoRequest(**options)
    except RequestError as error:
        raise FieldError(str(error), leading_field(str(error)) or None) from error


def _decode_option(name: str, value: Any) -> Any:
    """The value of an option. Forms contain lists and objects as JSON."""
    annotation = str(VideoRequest.model_fields[name].annotation)
    is_nested = "tuple" in annotation or holds_mapping(VideoRequest.model_fields[name])
    if name == "lora" and isinstance(value, str) and not value.lstrip().startswith("["):
        return value  # a single one
    if is_nested and isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise FieldError(f"{name}={value[:60]!r} must be JSON", name) from error
    if isinstance(value, dict) and len(value) > _MAX_FIELDS:
        raise FieldError(f"{name} has {len(value)} fields: {_MAX_FIELDS} at most", name)
    if is_nested and isinstance(value, list) and len(value) > _MAX_LIST_LENGTH:
        raise FieldError(f"{name} has {len(value)} values: {_MAX_LIST_LENGTH} at most", name)
    return value


def _referenced(name: str, reference: Any) -> bytes:
    """Content of a picture in a data URL. Other URLs are not fetched and paths are not opened."""
    if isinstance(reference, dict):
        if set(reference) != {"image_url"}:
            raise FieldError(
                f"{name} must hold image_url, with a data URL: files are not kept here", name
            )
        reference = reference["image_url"]
    prefix = _DATA_URL.match(reference) if isinstance(reference, str) else None
    if prefix is None:
        raise FieldError(
            f"{name} must be a file of the form, or a data URL (data:image/png;base64,...): "
            "nothing else is fetched",
            name,
        )
    try:
        return base64.b64decode(reference[prefix.end() :], validate=True)
    except (binascii.Error, ValueError) as error:
        raise FieldError(f"{name} is not valid base64: encode it again", name) from error
