"""Irregular and oversized files are refused at once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from longtake.files.reading import open_regular, read_json, read_regular


def pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


def link_to_itself(path: Path) -> Path:
    path.symlink_to(path.name)
    return path


def huge_file(path: Path) -> Path:
    path.touch()
    os.truncate(path, 2**33)
    return path


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (pipe, "it is a pipe, not a regular file"),
        (link_to_itself, "Too many levels of symbolic links"),
        (huge_file, "it is larger than 1 MiB"),
        (lambda path: Path("/dev/zero"), "it is a device, not a regular file"),
        (lambda path: path.parent, "Is a directory"),
        (lambda path: path.with_name("none"), "No such file or directory"),
        (lambda path: Path("a\0b"), "no file can have that name"),
    ],
)
def test_irregular_and_oversized_files_are_refused(
    make: object, reason: str, tmp_path: Path
) -> None:
    assert callable(make)
    with pytest.raises(OSError) as caught:
        read_regular(make(tmp_path / "file"), 2**20)
    assert caught.value.strerror == reason


def test_a_link_to_a_regular_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    assert read_regular(tmp_path / "link", 7) == b"content"
    with open_regular(tmp_path / "link") as file:
        assert file.read(3) == b"con"
    with pytest.raises(OSError, match="it is larger than 0 KiB"):
        read_regular(tmp_path / "link", 6)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"[" * 200_000, "nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", "Exceeds the limit"),
        (b"\xff", "can't decode"),
        (b"{", "Expecting property name"),
    ],
)
def test_invalid_json_is_refused(content: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ValueError, match=reason):
        read_json(tmp_path / "file")
