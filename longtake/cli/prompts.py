"""Prompts as the command line has them: words, ``-`` for standard input, ``@file`` for a file.

``@@home`` is the prompt "@home"; what stands behind ``--`` is taken as it is.
"""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path
from typing import Any

from longtake.configs.request import MAX_PROMPT
from longtake.engine.launch.torchrun import TorchrunPlace
from longtake.errors import RequestError
from longtake.files.atomic import cause

_MOST_BYTES = 4 * MAX_PROMPT + 2
"""Of a prompt in UTF-8, and a line break."""


def with_prompts(options: dict[str, Any]) -> dict[str, Any]:
    """Options with their prompts read.

    Raises:
        RequestError: standard input or a file has none.
    """
    read = dict(options)
    as_it_is = read.pop("literal_prompt", None)
    named = read.pop("prompt_option", None)
    if None not in (named, read.get("prompt")) and named != read["prompt"]:
        raise RequestError("a prompt and --prompt: leave one of them out")
    if named is not None:
        read["prompt"] = named
    if as_it_is is not None and read.get("prompt") is not None:
        raise RequestError("a prompt, and another behind --: leave one of them out")
    of_stdin = [name for name in _PROMPTS if read.get(name) == "-"]
    if len(of_stdin) > 1:
        raise RequestError("prompt and negative_prompt of standard input: name a file by @")
    for name in _PROMPTS:
        if isinstance(words := read.get(name), str):
            read[name] = _read(name, words)
    if as_it_is is not None:
        read["prompt"] = as_it_is
    return read


_PROMPTS = ("prompt", "negative_prompt")


def _read(name: str, words: str) -> str:
    if words == "-":
        return _text_of(f"{name}=-", _standard_input())
    if words.startswith("@@"):
        return words[1:]
    if words.startswith("@"):
        return _text_of(f"{name}={words!r}", _file(name, words))
    return words


def _standard_input() -> bytes:
    if TorchrunPlace.given():
        raise RequestError(
            "prompt=- under torchrun, whose ranks share no standard input: use @FILE"
        )
    if sys.stdin is None:
        raise RequestError("prompt=- with standard input closed: pipe the prompt in, or use @FILE")
    if sys.stdin.isatty():
        print("longtake: type the prompt, then Ctrl-D on a line of its own", file=sys.stderr)
    try:
        return sys.stdin.buffer.read(_MOST_BYTES + 1)
    except OSError as error:
        raise RequestError(f"prompt=-: standard input cannot be read: {cause(error)}") from error


def _file(name: str, words: str) -> bytes:
    path = Path(os.path.expanduser(words[1:]))
    way_out = f"write @{words} for a prompt that begins with @"
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for
            raise RequestError(f"{name}={words!r}: {path} is no regular file; {way_out}")
        with path.open("rb") as file:
            return file.read(_MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        raise RequestError(f"{name}={words[:60]!r}: {cause(error)}; {way_out}") from error


def _text_of(source: str, content: bytes) -> str:
    """The prompt in some bytes, without the line break at their end."""
    if len(content) > _MOST_BYTES:
        raise RequestError(f"{source} has more than {MAX_PROMPT} characters, which are the most")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise RequestError(
            f"{source} line {line} is not UTF-8: save it in that encoding"
        ) from error
    if "\0" in text:
        raise RequestError(f"{source} holds zero bytes: save it as text in UTF-8")
    text = text.removesuffix("\n").removesuffix("\r")
    if not text.strip():
        raise RequestError(f"{source} is empty: write a prompt into it")
    return text
