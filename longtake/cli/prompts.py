"""Prompts on the command line: text, ``-`` for standard input, ``@FILE`` for a file.

``@@home`` is the prompt "@home". A prompt after ``--`` is taken literally.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from longtake.configs.field_types import MAX_PROMPT
from longtake.engine.torchrun import TorchrunEnvironment
from longtake.errors import RequestError
from longtake.files.atomic import cause
from longtake.files.reading import open_regular

_MAX_BYTES = 4 * MAX_PROMPT + 2
"""The longest prompt in UTF-8, and a line break."""

_PROMPTS = ("prompt", "negative_prompt")


def read_prompts(options: dict[str, Any]) -> dict[str, Any]:
    """Replace prompts that name a source by its text.

    Args:
        options: Parsed options of a command.

    Returns:
        The options with one ``prompt``, however it was given.

    Raises:
        RequestError: Standard input or a file has no prompt, or several prompts were given.
    """
    read = dict(options)
    literal = read.pop("literal_prompt", None)
    named = read.pop("prompt_option", None)
    if None not in (named, read.get("prompt")) and named != read["prompt"]:
        raise RequestError("a prompt and --prompt: leave one of them out")
    if named is not None:
        read["prompt"] = named
    if literal is not None and read.get("prompt") is not None:
        raise RequestError("a prompt and another one after --: leave one of them out")
    if all(read.get(name) == "-" for name in _PROMPTS):
        raise RequestError("prompt and negative_prompt both from standard input: use @FILE for one")
    for name in _PROMPTS:
        if isinstance(value := read.get(name), str):
            read[name] = _read(name, value)
    if literal is not None:
        read["prompt"] = literal
    return read


def _read(name: str, value: str) -> str:
    if value == "-":
        return _decode(f"{name}=-", _read_standard_input())
    if value.startswith("@@"):
        return value[1:]
    if value.startswith("@"):
        return _decode(f"{name}={value!r}", _read_file(name, value))
    return value


def _read_standard_input() -> bytes:
    if TorchrunEnvironment.is_set():
        raise RequestError(
            "prompt=- under torchrun, whose ranks share no standard input: use @FILE"
        )
    if sys.stdin is None:
        raise RequestError("prompt=- with standard input closed: pipe the prompt in, or use @FILE")
    if sys.stdin.isatty():
        print("longtake: type the prompt, then Ctrl-D on a line of its own", file=sys.stderr)
    try:
        return sys.stdin.buffer.read(_MAX_BYTES + 1)
    except OSError as error:
        raise RequestError(f"prompt=-: standard input cannot be read: {cause(error)}") from error


def _read_file(name: str, value: str) -> bytes:
    try:
        with open_regular(Path(os.path.expanduser(value[1:]))) as file:
            return file.read(_MAX_BYTES + 1) or b""  # None: a file of /proc that holds nothing yet
    except OSError as error:
        raise RequestError(
            f"{name}={value[:60]!r}: {error.strerror}; write @{value[:60]} for a prompt that "
            "begins with @"
        ) from error


def _decode(source: str, content: bytes) -> str:
    """The prompt in a file's bytes, without the final line break."""
    if len(content) > _MAX_BYTES:
        raise RequestError(f"{source} has more than {MAX_PROMPT} characters, the limit: shorten it")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise RequestError(
            f"{source} line {line} is not UTF-8: save it in that encoding"
        ) from error
    if "\0" in text:
        raise RequestError(f"{source} contains NUL bytes: save it as UTF-8 text")
    text = text.removesuffix("\n").removesuffix("\r")
    if not text.strip():
        raise RequestError(f"{source} is empty: write a prompt into it")
    return text
