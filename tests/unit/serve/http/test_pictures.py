"""Pictures that clients send."""

from __future__ import annotations

import base64
import hashlib
import struct
import zlib
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from longtake.engine.media.pictures.picture import decode_picture
from longtake.errors import RequestError
from longtake.pipelines.spec import Presence
from tests.unit.serve.http.helpers import Gray, ended, picture, refused


def test_pictures_in_every_encoding(animating: Gray) -> None:
    client, service = animating
    for kind in ("PNG", "JPEG", "WEBP"):
        content = picture((80, 64), kind)
        data = f"data:image/{kind.lower()};base64,{base64.b64encode(content).decode()}"
        fields = {"prompt": "a", "size": "64x64"}
        answers = [
            client.post("/v1/videos", data=fields, files={"input_reference": ("../../x", content)}),
            *(
                client.post("/v1/videos", json={**fields, "input_reference": reference})
                for reference in (data, {"image_url": data})
            ),
        ]
        for answer in answers:
            assert answer.status_code == 200, answer.text
            video = ended(client, answer.json()["id"])
            assert video["status"] == "completed"
            job = service.store.find(video["id"])
            assert job is not None
            assert job.request.image is not None
            assert job.request.image.parent == service.folder / "pictures"
            assert job.request.image.read_bytes() == content
            client.delete(f"/v1/videos/{video['id']}")
    service.retention.clean_up(0)
    assert not list((service.folder / "pictures").iterdir())
    assert not list((service.folder / "videos").iterdir())


def bomb(width: int, height: int) -> bytes:
    """A PNG with few bytes and many pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 2**20)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


SVG = b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>"


NO_PICTURES = {
    "nothing": b"",
    "text": b"hello",
    "cut short": picture()[:60],
    "a header alone": picture()[:8],
    "of many pixels": bomb(60_000, 60_000),
    "of more than there are": bomb(2**31 - 1, 2**31 - 1),
    "SVG": SVG,
    "GIF and JavaScript": b"GIF89a/*" + b"\0" * 40 + b"*/=1;alert(1)",
    "PDF": b"%PDF-1.7\n" + picture(),
    "zip": b"PK\x03\x04" + picture(),
    "BMP": picture(kind="BMP"),
    "TIFF": picture(kind="TIFF"),
    "a pickle": b"\x80\x04\x95\x1f\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94.",
}


def test_files_that_are_not_pictures_are_refused(animating: Gray) -> None:
    client, service = animating
    for name, content in NO_PICTURES.items():
        answer = client.post(
            "/v1/videos", data={"prompt": "a"}, files={"input_reference": ("a.png", content)}
        )
        error = refused(answer)
        assert error["param"] == "input_reference", (name, error)
        assert error["message"].startswith("input_reference")
    assert refused(client.post("/v1/videos", json={"prompt": "a"}))["param"] == "input_reference"
    assert not list((service.folder / "pictures").iterdir())
    assert client.get("/v1/videos").json()["data"] == []


def test_corrupted_pictures_do_not_stop_the_server(
    animating: Gray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any bytes are either accepted or refused."""
    client, service = animating
    monkeypatch.setattr(  # here: a process for each would take long
        "longtake.engine.media.pictures.picture.decode_in_subprocess",
        lambda content, name, cpu_s: decode_picture(content, name),
    )
    whole = picture((64, 64), "JPEG") + picture((32, 32))

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        st.binary(max_size=60),
        st.integers(0, len(whole)),
        st.integers(0, 40),
        st.sampled_from("PJW"),
    )
    def tampered(noise: bytes, at: int, gap: int, kind: str) -> None:
        base = picture((48, 48), {"P": "PNG", "J": "JPEG", "W": "WEBP"}[kind])
        at = min(at, len(base))
        content = base[:at] + noise + base[at + gap :]
        files = {"input_reference": ("a", content)}
        answer = client.post("/v1/videos", data={"prompt": "a", "num_frames": "1"}, files=files)
        assert answer.status_code in (200, 400, 429), answer.text

    tampered()
    assert client.get("/health").status_code == 200


def test_only_one_file_is_accepted_as_input_reference(animating: Gray) -> None:
    client, _ = animating
    files = [("input_reference", picture()), ("input_reference", picture())]
    refused(client.post("/v1/videos", data={"prompt": "a"}, files=files))
    error = refused(client.post("/v1/videos", data={"prompt": "a"}, files={"image": picture()}))
    assert error["param"] == "image"


def test_a_last_picture_is_kept_beside_the_first(animating: Gray) -> None:
    client, service = animating
    first, last = picture((80, 64)), picture((64, 48), "JPEG")
    data = f"data:image/jpeg;base64,{base64.b64encode(last).decode()}"
    fields = {"prompt": "a", "num_frames": "5"}
    files = {"input_reference": first, "last_image": last}
    error = refused(client.post("/v1/videos", data=fields, files=files))
    assert error["param"] == "last_image"
    assert error["message"].startswith("last_image with a model that takes image: leave it out")
    assert not list((service.folder / "pictures").iterdir())

    pictures: dict[str, Presence] = {"image": "required", "last_image": "required"}
    service.engine.spec = replace(service.engine.spec, pictures=pictures)
    error = refused(client.post("/v1/videos", data=fields, files={"input_reference": first}))
    assert error["message"].endswith("send last_image, a PNG, JPEG or WebP file")
    error = refused(client.post("/v1/videos", data=fields, files={**files, "last_image": b"none"}))
    assert error["message"].startswith("last_image is no picture")
    error = refused(client.post("/v1/videos", json={**fields, "last_image": "a.png"}))
    assert error["param"] == "last_image"

    key = {"Idempotency-Key": "once"}
    sent = client.post("/v1/videos", data=fields, files=files, headers=key)
    again = client.post(
        "/v1/videos",
        data={**fields, "last_image": data},
        files={"input_reference": first},
        headers=key,
    )
    assert sent.json()["id"] == again.json()["id"]
    other = client.post(
        "/v1/videos", data=fields, files={**files, "last_image": first}, headers=key
    )
    assert refused(other)["param"] == "Idempotency-Key"
    assert ended(client, sent.json()["id"])["status"] == "completed"
    job = service.store.find(sent.json()["id"])
    assert job is not None
    kept = {name: path.read_bytes() for name, path in job.request.picture_paths.items()}
    assert kept == {"image": first, "last_image": last}
    assert job.request.last_image_sha256 == hashlib.sha256(last).hexdigest()
    assert service.picture(job.id, "last_image") == last
    client.delete(f"/v1/videos/{job.id}")
    service.retention.clean_up(0)
    assert not list((service.folder / "pictures").iterdir())


def test_a_picture_can_be_sent_again_after_deletion(animating: Gray) -> None:
    client, service = animating

    def send() -> Any:
        return client.post(
            "/v1/videos",
            data={"prompt": "a", "num_frames": "1"},
            files={"input_reference": picture()},
            headers={"Idempotency-Key": "once"},
        )

    first = send().json()["id"]
    assert ended(client, first)["status"] == "completed"
    client.delete(f"/v1/videos/{first}")
    error = refused(send(), 409)
    assert error["message"].endswith("was deleted a moment ago: try again")
    service.retention.clean_up(0)
    again = send()
    assert again.status_code == 200
    assert send().json()["id"] == first
    assert ended(client, first)["status"] == "completed"
    assert len(list((service.folder / "pictures").iterdir())) == 1


def test_old_uploads_are_removed(animating: Gray) -> None:
    _, service = animating
    name = service.pictures.upload(picture())
    assert service.pictures.read(name) == picture()
    for other in ("../../etc/passwd", "sent-", name + "x", "/etc/passwd", ""):
        with pytest.raises(RequestError, match="no longer there"):
            service.picture(other)
    with pytest.raises(RequestError, match="^the picture is no picture"):
        service.pictures.upload(b"none")
    for _ in range(70):
        service.pictures.upload(picture())
    assert len(list((service.folder / "pictures").iterdir())) == 64
