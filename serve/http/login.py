"""Login for browsers: an API key is exchanged for a session cookie."""

from __future__ import annotations

import asyncio

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from longtake.serve.http.access import SESSION_COOKIE, SESSION_S, Access
from longtake.serve.http.problems import Problem
from longtake.serve.templates import TEMPLATES

_MAX_KEY_BYTES = 1024
_WRONG_KEY_DELAY_S = 0.5


def add_login(app: FastAPI, access: Access) -> None:
    """Add the routes ``/login`` and ``/logout``."""

    @app.get("/login", include_in_schema=False, response_model=None)
    async def login_page(request: Request) -> Response:
        if not access.needs_key or access.label_of(request) is not None:
            return RedirectResponse("/", 303)
        return HTMLResponse(TEMPLATES.get_template("login.html").render(wrong=False))

    @app.post("/login", include_in_schema=False, response_model=None)
    async def login(request: Request) -> Response:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/x-www-form-urlencoded":
            raise Problem(415, "send the form of this page")
        async with request.form(max_files=0, max_fields=4, max_part_size=_MAX_KEY_BYTES) as form:
            key = str(form.get("key", ""))
        label = access.label_of_key(key.strip())
        if label is None:
            await asyncio.sleep(_WRONG_KEY_DELAY_S)
            return HTMLResponse(TEMPLATES.get_template("login.html").render(wrong=True), 401)
        response = RedirectResponse("/", 303)
        response.set_cookie(
            SESSION_COOKIE,
            access.new_session(label),
            max_age=SESSION_S,
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
        return response

    @app.post("/logout", include_in_schema=False, response_model=None)
    async def logout() -> Response:
        response = RedirectResponse("/login", 303)
        response.delete_cookie(SESSION_COOKIE)
        return response
