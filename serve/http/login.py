"""Where a browser gives its API key once, and gets a session for it."""

from __future__ import annotations

import asyncio

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from longtake.serve.http.access import SESSION, SESSION_S, Access
from longtake.serve.http.problems import Problem
from longtake.serve.templates import TEMPLATES

_MOST_TEXT = 1024
_AFTER_A_WRONG_KEY_S = 0.5


def add_login(app: FastAPI, access: Access) -> None:
    """Add the form, what it sends, and a way out."""

    @app.get("/login", include_in_schema=False, response_model=None)
    async def form(request: Request) -> Response:
        if not access.closed or access.asker(request.headers) is not None:
            return RedirectResponse("/", 303)
        return HTMLResponse(TEMPLATES.get_template("login.html").render(wrong=False))

    @app.post("/login", include_in_schema=False, response_model=None)
    async def login(request: Request) -> Response:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/x-www-form-urlencoded":
            raise Problem(415, "send the form of this page")
        async with request.form(max_files=0, max_fields=4, max_part_size=_MOST_TEXT) as sent:
            given = str(sent.get("key", ""))
        label = access.key(given.strip())
        if label is None:
            await asyncio.sleep(_AFTER_A_WRONG_KEY_S)
            return HTMLResponse(TEMPLATES.get_template("login.html").render(wrong=True), 401)
        answer = RedirectResponse("/", 303)
        answer.set_cookie(
            SESSION,
            access.session(label),
            max_age=SESSION_S,
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
        return answer

    @app.post("/logout", include_in_schema=False, response_model=None)
    async def logout() -> Response:
        answer = RedirectResponse("/login", 303)
        answer.delete_cookie(SESSION)
        return answer
