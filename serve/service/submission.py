"""A submitted video, before it is checked against the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from longtake.configs.request import VideoRequest
from longtake.errors import RequestError

PICTURE_FIELDS = {"image": "input_reference", "last_image": "last_image"}
"""Names of the pictures in the API, by request field; the first one is OpenAI's."""


class FieldError(RequestError):
    """An invalid field of a request.

    Attributes:
        param: Name of the field in the API; None if the whole request is meant.
        code: Machine-readable error code; None if the message is enough.
    """

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


@dataclass(frozen=True)
class Submission:
    """A valid request, and the pictures that came with it.

    Attributes:
        request: The request, without its pictures.
        pictures: Content of each picture's file, not decoded yet, by request field.
    """

    request: VideoRequest
    pictures: Mapping[str, bytes]
