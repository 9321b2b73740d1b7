"""Pictures of the page: uploaded before a video is submitted, and kept for the next one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from longtake.serve.page.form import Form
from longtake.serve.page.handlers import Handlers
from longtake.serve.page.views import Views
from longtake.serve.service.service import VideoService
from tests.standin import gray_server, objects
from tests.unit.serve.http.helpers import picture

CLIENT: Any = SimpleNamespace(request=None)
FIRST, LAST = picture((64, 64)), picture((48, 48))


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[VideoService]:
    """The service of a model that takes two pictures."""
    with gray_server(monkeypatch, tmp_path, "demo-i2v") as (_, made):
        pictures: Any = {"image": "required", "last_image": "optional"}
        made.engine.spec = replace(made.engine.spec, pictures=pictures)
        yield made


def handlers_of(service: VideoService) -> tuple[Handlers, list[Any]]:
    """The page's functions, and the values of a filled form."""
    form = Form(service.engine.spec)
    filled = {"prompt": "moving up", "num_inference_steps": "2", "i2v_mode": "dynamic"}
    values = [filled.get(name, "") for name in form.fields]
    return Handlers(service, form, Views(service, objects(service))), values


def test_pictures_are_submitted_kept_and_sent_again(service: VideoService) -> None:
    handlers, form = handlers_of(service)
    first, last = (service.pictures.upload(each) for each in (FIRST, LAST))
    name, *_ = handlers.submit("", CLIENT, first, last, *form)
    job = service.store.find(name)
    assert job is not None
    assert [p.read_bytes() for p in job.request.picture_paths.values()] == [FIRST, LAST]

    assert handlers.settings(name)[:3] == [name, name, "moving up"]
    opened = handlers.open(name, "a draft")
    assert opened[:4] == [name, name, name, "a draft"]
    assert "dynamic" in opened and len(opened) == 3 + len(form)
    again, *_ = handlers.submit(name, CLIENT, *handlers.settings(name))
    kept = service.store.find(again)
    assert kept is not None and again != name
    assert [p.read_bytes() for p in kept.request.picture_paths.values()] == [FIRST, LAST]
    assert kept.request.picture_paths != job.request.picture_paths


def test_an_optional_picture_may_be_missing_and_a_failed_upload_is_named(
    service: VideoService,
) -> None:
    handlers, form = handlers_of(service)
    first = service.pictures.upload(FIRST)
    shown, _, problem = handlers.submit("", CLIENT, first, "!it is no picture", *form)
    assert shown == ""
    assert problem == '{"field": "last-picture", "message": "it is no picture"}'
    shown, _, problem = handlers.submit("", CLIENT, "", "", *form)
    assert shown == "" and '"field": "picture"' in problem
    name, *_ = handlers.submit("", CLIENT, first, "", *form)
    assert handlers.settings(name)[:2] == [name, ""]
    assert handlers.open("gone", "")[:3] == ["gone", "", ""]
