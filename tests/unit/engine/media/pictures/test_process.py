"""Decoding of pictures in limited processes."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image

from longtake.engine.media.pictures import limited_process, picture, process
from longtake.engine.media.pictures.picture import check_picture, read_picture
from longtake.errors import EngineError, RequestError
from tests.hostile_pictures import many_scans
from tests.processes import children_running, still_running
from tests.until import until

DECODER = "longtake.engine.media.pictures.decoder"


def children() -> set[int]:
    """Children of this process, zombies included."""
    return {each.pid for each in psutil.Process().children()}


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    path = tmp_path / "hostile.jpg"
    path.write_bytes(many_scans())
    return path


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """CPU time limits that a test can wait for."""
    assert (process.MAX_CPU_S, process._QUICK_CPU_S) == (5, 0.5)
    monkeypatch.setattr(picture, "MAX_CPU_S", 0.3)
    monkeypatch.setattr(process, "_QUICK_CPU_S", 0.2)


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    path = tmp_path / "plain.png"
    Image.new("RGB", (8, 6), (1, 2, 3)).save(path)
    return path


def test_slow_picture_is_refused(hostile: Path, short: None) -> None:
    """Its decoder has ended then."""
    message = f"image={str(hostile)!r} takes more than 0.3 s to decode: save it as a baseline JPEG"
    before = children()
    for read in (read_picture, check_picture):
        with pytest.raises(RequestError) as caught:
            read(hostile)
        assert str(caught.value) == f"{message} or PNG"
        assert children() <= before


def test_slow_pictures_do_not_delay_others(
    hostile: Path, plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(picture, "MAX_CPU_S", 0.8)
    refused = []

    def read() -> None:
        with pytest.raises(RequestError, match="takes more than"):
            read_picture(hostile)
        refused.append(hostile)

    slow = [threading.Thread(target=read) for _ in range(3)]
    with process._slow, process._slow:  # as if two slow pictures were being decoded
        for thread in slow:
            thread.start()
        assert read_picture(plain).size == (6, 8)
        assert refused == []
    for thread in slow:
        thread.join()
    assert len(refused) == 3


def test_picture_that_needs_too_much_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "MAX_MEMORY_BYTES", 2**23)
    path = tmp_path / "large.png"
    Image.new("RGB", (3000, 3000)).save(path)
    with pytest.raises(RequestError, match="takes more than 8 MiB of memory to decode"):
        read_picture(path)


def test_fault_of_a_decoder_that_ends(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal is the picture's fault, a failed start the machine's."""
    label = f"image={str(plain)!r}"
    for code, error, words in (
        (-signal.SIGSEGV, RequestError, "ends its decoder (Segmentation fault): save it again"),
        (-signal.SIGKILL, RequestError, "ends its decoder (Killed): save it again"),
        (1, EngineError, "cannot be decoded here: ImportError: no PIL"),
    ):
        ended = subprocess.CompletedProcess([], code, b"", b"Traceback\nImportError: no PIL\n")
        monkeypatch.setattr(process, "run_limited", lambda *args, ended=ended: ended)
        with pytest.raises(error) as caught:
            read_picture(plain)
        assert str(caught.value) == f"{label} {words}"


def test_busy_machine(hostile: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_TIMEOUT_S", 0.01)
    before = children()
    with pytest.raises(EngineError, match=r"was not decoded within 0\.01 s, since .*: try again"):
        read_picture(hostile)
    assert children() <= before


def test_accepted_picture_is_not_checked_again(
    plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has more time when it is rendered."""
    allowed_s = []

    def decoded(content: bytes, label: str, cpu_s: float) -> Any:
        allowed_s.append(cpu_s)
        return picture.decode_picture(content, label)

    monkeypatch.setattr(picture, "decode_in_subprocess", decoded)
    picture._sizes.clear()
    first = check_picture(plain)
    again = plain.with_name("again")
    again.write_bytes(plain.read_bytes())
    assert check_picture(again) == first
    assert allowed_s == [5]
    assert read_picture(plain, sha256=first.sha256).size == first.size
    assert allowed_s == [5, 10]


def test_decoder_inherits_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGTAKE_API_KEY", "secret")
    assert "secret" not in limited_process._environment().values()


def test_decoder_ends_with_its_parent(hostile: Path) -> None:
    reading = (
        "from pathlib import Path; from longtake.engine.media.pictures import picture, process;"
        "process._QUICK_CPU_S = 300;"
        f"picture.read_picture(Path({str(hostile)!r}))"
    )
    parent = subprocess.Popen([sys.executable, "-c", reading])
    decoders: list[psutil.Process] = []

    def decoding() -> bool:
        decoders[:] = children_running(DECODER, psutil.Process(parent.pid))
        return bool(decoders)

    until(decoding)
    parent.kill()
    parent.wait()
    assert not still_running(decoders, timeout=10)


def test_only_three_formats_are_decoded(tmp_path: Path) -> None:
    """Content counts, not the suffix; bytes after the picture are ignored."""
    path, content = tmp_path / "a.png", io.BytesIO()
    Image.new("RGB", (4, 4)).save(content, "PNG")
    path.write_bytes(content.getvalue() + b"<script>" * 1000)
    assert read_picture(path).size == (4, 4)
    for kind in ("GIF", "BMP", "TIFF", "PPM", "PCX", "ICO", "EPS", "PDF"):
        content = io.BytesIO()
        Image.new("RGB", (4, 4)).save(content, kind)
        with pytest.raises(RequestError, match="^It is no picture in PNG, JPEG or WebP"):
            picture.decode_picture(content.getvalue(), "It")
