"""What tests of the API share."""

from __future__ import annotations

import io
from typing import Any

from PIL import Image
from starlette.testclient import TestClient

from longtake.serve.service.service import VideoService
from tests.until import until

Gray = tuple[TestClient, VideoService]


def picture(size: tuple[int, int] = (64, 64), kind: str = "PNG") -> bytes:
    content = io.BytesIO()
    Image.new("RGB", size, (200, 30, 30)).save(content, kind)
    return content.getvalue()


def ended(client: TestClient, name: str) -> dict[str, Any]:
    def video() -> dict[str, Any]:
        return dict(client.get(f"/v1/videos/{name}").json())

    until(lambda: video()["status"] in ("completed", "failed"))
    return video()


def refused(answer: Any, status: int = 400) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert "\n" not in error["message"]
    return dict(error)
