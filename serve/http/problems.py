"""Errors in the shape that OpenAI's clients read."""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from longtake.serve.http.openai_request import FieldError

_LONGEST = 1000
"""Letters of a message."""
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
}


class Problem(HTTPException):
    """An answer that is an error.

    Args:
        status: of HTTP.
        message: one line.
        param: the field that is meant.
        code: for programs.
        headers: more of the answer's.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, headers)
        self.param = param
        self.code = code

    @classmethod
    def of(cls, error: FieldError) -> Problem:
        """A field that cannot be as it is."""
        return cls(400, str(error), param=error.param, code=error.code)

    def answer(self) -> JSONResponse:
        """As it is sent."""
        status = self.status_code
        kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
        content = {
            "message": _sendable(self.detail),
            "type": kind,
            "param": self.param if self.param is None else _sendable(self.param),
            "code": self.code,
        }
        return JSONResponse({"error": content}, status, self.headers)


def _sendable(text: str) -> str:
    """Half of a surrogate pair, of a client's JSON, cannot be sent back."""
    return text.encode("utf-8", "replace").decode()[:_LONGEST]
