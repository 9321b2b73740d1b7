"""Error responses in the format of OpenAI's API."""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from longtake.errors import EngineError, RefusedInputError
from longtake.serve.queue.job_database import QueueError
from longtake.serve.service.submission import FieldError

_MAX_MESSAGE_LENGTH = 1000
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
}


class Problem(HTTPException):
    """An error response.

    Args:
        status: HTTP status code.
        message: One line.
        param: Name of the invalid field; None if the whole request is meant.
        code: Machine-readable error code; None if the message is enough.
        headers: Additional response headers.
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
        """The response to an invalid field."""
        return cls(400, str(error), param=error.param, code=error.code)

    def response(self) -> JSONResponse:
        """The error as a JSON response."""
        status = self.status_code
        kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
        content = {
            "message": _encodable(self.detail),
            "type": kind,
            "param": self.param if self.param is None else _encodable(self.param),
            "code": self.code,
        }
        return JSONResponse({"error": content}, status, self.headers)


def unavailable_message(error: EngineError) -> str:
    """The message to clients about a temporary failure; it contains no path of the server."""
    reason = error.summary if isinstance(error, QueueError) else "a file cannot be written"
    return f"{reason}: try again later"


def add_error_handlers(app: FastAPI) -> None:
    """Have an application return all errors in OpenAI's format."""

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        if isinstance(error, Problem):
            return error.response()
        headers = dict(error.headers or {})
        return Problem(error.status_code, str(error.detail), headers=headers).response()

    @app.exception_handler(RequestValidationError)
    async def invalid_parameter(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        name = str(first["loc"][-1])
        return Problem(400, f"{name}: {first['msg']}", param=name).response()

    @app.exception_handler(RefusedInputError)
    async def refused_input(request: Request, error: RefusedInputError) -> Response:
        return Problem(400, str(error)).response()

    @app.exception_handler(QueueError)
    async def queue_unavailable(request: Request, error: QueueError) -> Response:
        headers = {"retry-after": "5"}
        message = unavailable_message(error)
        return Problem(503, message, code="queue_unavailable", headers=headers).response()

    @app.exception_handler(EngineError)
    async def engine_error(request: Request, error: EngineError) -> Response:
        return Problem(503, unavailable_message(error)).response()

    @app.exception_handler(Exception)
    async def internal_error(request: Request, error: Exception) -> Response:
        return Problem(500, "internal error: the server's log says more").response()


def _encodable(text: str) -> str:
    """The text without lone surrogates, which UTF-8 cannot encode, cut to the maximum length."""
    return text.encode("utf-8", "replace").decode()[:_MAX_MESSAGE_LENGTH]
