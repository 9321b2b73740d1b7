"""Prompts from arguments, files and standard input."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from longtake.cli.prompts import read_prompts
from longtake.errors import RequestError


def test_prompts_from_files_and_standard_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "p.txt"
    file.write_bytes("\ufeffa dög\r\n".encode())
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("a cät\n".encode())))
    options = {"prompt": "-", "negative_prompt": f"@{file}"}
    assert read_prompts(options) == {"prompt": "a cät", "negative_prompt": "a dög"}
    assert read_prompts({"prompt": "@@home"}) == {"prompt": "@home"}
    assert read_prompts({"prompt": None, "prompt_option": "a"}) == {"prompt": "a"}
    assert read_prompts({"prompt": "a", "prompt_option": "a"}) == {"prompt": "a"}
    assert read_prompts({"prompt": None, "literal_prompt": "-"}) == {"prompt": "-"}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a caf\xe9", "line 1 is not UTF-8"),
        (b" \n", "is empty"),
        (b"a" * 500_000, "more than 100000 characters"),
        (b"a\0", "contains NUL bytes"),
        (None, "No such file.*; write @@"),
    ],
)
def test_unusable_prompt_files_are_refused(
    tmp_path: Path, content: bytes | None, words: str
) -> None:
    file = tmp_path / "p.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(RequestError, match=words):
        read_prompts({"prompt": f"@{file}"})
    with pytest.raises(RequestError, match="Is a directory; write @@"):
        read_prompts({"prompt": f"@{tmp_path}"})
