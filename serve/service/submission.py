"""A submitted video, before it is checked against the model."""

from __future__ import annotations

from dataclasses import dataclass

from longtake.configs.request import VideoRequest
from longtake.errors import RequestError


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
    """A valid request, and the picture that came with it.

    Attributes:
        request: The request, without its picture.
        picture: Content of the picture's file, not decoded yet; None without a picture.
    """

    request: VideoRequest
    picture: bytes | None
