"""Parses the body of a request to create a video: a JSON object, or a form with a file."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import Request
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import FormParser, MultiPartException, MultiPartParser

from longtake.serve.http.problems import Problem
from longtake.serve.service.submission import PICTURE_FIELDS

_FILES = tuple(PICTURE_FIELDS.values())
_FORMS = ("multipart/form-data", "application/x-www-form-urlencoded")
_LIMITS = {"max_fields": 64, "max_part_size": 512 * 1024}


Content = tuple[dict[str, Any], dict[str, bytes]]
"""Fields, and contents of files, by name."""


@asynccontextmanager
async def request_content(request: Request) -> AsyncIterator[Content]:
    """The fields of a request, and the contents of its files, both by name.

    Raises:
        Problem: The body is neither JSON nor a form, is malformed, or has too many fields.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind in _FORMS:
        form = await _read_form(request, kind)
        try:
            yield await _form_fields(form)
        finally:
            await form.close()
    elif kind in ("application/json", ""):
        yield await _read_json(request), {}
    else:
        raise Problem(415, f"{kind[:60]!r} is neither JSON nor a form: send one of them")


async def _read_json(request: Request) -> dict[str, Any]:
    try:
        content = json.loads(await request.body(), parse_constant=_reject_constant)
    except (ValueError, RecursionError) as error:
        raise Problem(400, "the body is not valid JSON: send a JSON object") from error
    if not isinstance(content, dict):
        raise Problem(400, "the body must be a JSON object")
    return content


async def _read_form(request: Request, kind: str) -> FormData:
    headers, stream = request.headers, request.stream()
    try:
        if kind == "multipart/form-data":
            return await _InMemoryParser(headers, stream, max_files=len(_FILES), **_LIMITS).parse()
        return await FormParser(headers, stream, **_LIMITS).parse()
    except (MultiPartException, KeyError) as error:  # KeyError: the boundary is missing
        message = getattr(error, "message", "it has no boundary")
        raise Problem(400, f"the form cannot be read: {message}") from error


async def _form_fields(form: FormData) -> Content:
    values: dict[str, Any] = {}
    uploads: dict[str, bytes] = {}
    for name, value in form.multi_items():
        if isinstance(value, UploadFile):
            if name not in _FILES:
                allowed = " or ".join(_FILES)
                raise Problem(400, f"a file can only be sent as {allowed}", param=name[:60])
            if name in uploads:
                raise Problem(400, f"{name!r} is given twice: send it once", param=name)
            uploads[name] = await value.read()
        elif name.endswith("[]") and isinstance(values.get(name[:-2], []), list):
            values.setdefault(name[:-2], []).append(value)
        elif name in values:
            raise Problem(400, f"{name[:60]!r} is given twice: send it once", param=name[:60])
        else:
            values[name] = value
    return values, uploads


class _InMemoryParser(MultiPartParser):
    """Keeps files in memory. Starlette's default writes those above 1 MiB to the system's temporary
    folder."""

    spool_max_size = 2**30


def _reject_constant(text: str) -> float:
    raise ValueError(f"{text} is no number")
