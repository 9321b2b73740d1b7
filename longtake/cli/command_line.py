"""From the words of the command line to a command and its options; what is no command and no option
is refused in one line, with what may be meant."""

from __future__ import annotations

import contextlib
import functools
import io
import operator
import os
import re
import shlex
import sys
from dataclasses import fields
from typing import Annotated, Any, NoReturn, get_args

import tyro

from longtake.cli.options import COMMANDS, FIELDS, metavar_of
from longtake.errors import is_utf8, nearly

_DESCRIPTION = "Long videos from diffusion transformers on any number of ranks."
_HELP = ("help", "--help", "-h")
_VERSION = ("--version", "-V")
_WANTED = {
    "batch": {"shots": "SHOTS"},
    "jobs": {"action": "list, show, cancel or retry", "folder": "FOLDER"},
    "decode": {"latents": "LATENTS.safetensors"},
}
"""What each command cannot do without."""


def parsed(arguments: list[str]) -> tuple[str, dict[str, Any]]:
    """The command, one of ``COMMANDS``, and its options by name.

    Raises:
        SystemExit: help was asked for, or something is unknown, which is said in one line.
    """
    for word in arguments:
        if not is_utf8(word):
            _refused_encoding(word)
    before, after = arguments, None
    if "--" in arguments:  # a prompt that begins with a dash
        before, after = arguments[: (at := arguments.index("--"))], arguments[at + 1 :]
    before = _with_command_first(before)
    name = before[0]
    _check_options(name, before[1:])
    options = _by_tyro(name, before)
    if after is not None:
        if "prompt" not in options:
            _refused(f"{' '.join(after)!r} behind -- is a prompt, which {name} takes none of", name)
        options["prompt_as_it_is"] = " ".join(after)
    missing = [word for field, word in _WANTED.get(name, {}).items() if options[field] is None]
    if missing:
        _refused(f"{name} wants {' and '.join(missing)}", name)
    given = {argument.replace("_", "-") for argument in before}
    for option, info in FIELDS.get(name, {}).items():
        word = option.replace("_", "-")
        if info.annotation is bool and not given & {f"--{word}", f"--no-{word}"}:
            options[option] = None  # a switch that is off because nobody touched it
    return name, options


def _refused(words: str, command: str = "") -> NoReturn:
    print(
        f"longtake: {words}; see {' '.join(filter(None, ('longtake', command)))} --help",
        file=sys.stderr,
    )
    raise SystemExit(2)


def _refused_encoding(word: str) -> NoReturn:
    """An argument whose bytes are no text, or are not seen to be in this locale."""
    try:
        content = os.fsencode(word)
        content.decode()
        way_out = f"set LC_ALL=C.UTF-8, since {sys.getfilesystemencoding()} cannot hold it"
        why = "cannot be read in this locale"
    except UnicodeError:
        content = word.encode("utf-8", "backslashreplace")
        with contextlib.suppress(UnicodeError):
            content = os.fsencode(word)
        why, way_out = "is not UTF-8", "write it in that encoding, or rename the file"
    shown = repr(content)[1:]
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    print(f"longtake: the argument {shown} {why}: {way_out}", file=sys.stderr)
    raise SystemExit(2)


def _with_command_first(words: list[str]) -> list[str]:
    """The words as a command and what it is given: of a call for help, too."""
    if not words:
        _by_tyro("", ["--help"], stream=sys.stderr)
        raise SystemExit(2)
    first, rest = words[0], words[1:]
    if first in _VERSION:
        return ["version"]
    if first in _HELP:
        topic = [word for word in rest if not word.startswith("-")][:1]
        if not topic:
            _by_tyro("", ["--help"])
        return [*_with_command_first(topic), "--help"] if topic else words
    if first in COMMANDS:
        asks = rest == ["help"] and "prompt" not in FIELDS.get(first, {})
        return [first, "--help"] if asks else words
    if first.startswith("-"):
        _refused(f"{first} before a command: name one, as in longtake generate {first} ...")
    meant = nearly(first, COMMANDS)
    if not meant and " " in first.strip():
        meant = f": longtake generate {shlex.quote(first)} renders a prompt"
    _refused(f"{first[:60]!r} is not a command{meant or ': use ' + ', '.join(COMMANDS)}")


def _names(command: str) -> set[str]:
    """The options of a command, as they are written but for their dashes."""
    names = {"help", "h"}
    for each in fields(COMMANDS[command][0]):
        kinds, marks = get_args(each.type)[:1], get_args(each.type)[1:]
        if tyro.conf.Positional in marks:
            continue
        told = next(mark for mark in marks if hasattr(mark, "aliases"))
        word = (told.name or each.name).replace("_", "-")
        names |= {word, *(alias.lstrip("-") for alias in told.aliases or ())}
        if kinds == (bool,) and tyro.conf.FlagCreatePairsOff not in marks:
            names.add(f"no-{word}")
    return names


def _check_options(command: str, words: list[str]) -> None:
    """Refuse what looks like an option and is none of the command's."""
    own = _names(command)
    for word in words:
        if re.match(r"--?[A-Za-z]", word) is None or (word.startswith("-o") and "o" in own):
            continue
        name = word.partition("=")[0]
        if name.lstrip("-").replace("_", "-") in own and (name.startswith("--") or len(name) == 2):
            continue
        if any(each.isspace() for each in name) and "prompt" in FIELDS.get(command, {}):
            _refused(f"{word[:60]!r} begins with a dash: put it behind --, at the end", command)
        meant = nearly(name, sorted(own - {"h"}))
        others = [each for each in COMMANDS if name.lstrip("-").replace("_", "-") in _names(each)]
        if meant:
            meant = re.sub(r"(\S+)$", r"--\1", meant)
        elif others:
            meant = f", but of {', '.join(others)}"
        _refused(f"{name} is not an option of {command}{meant}", command)


def _by_tyro(command: str, words: list[str], stream: Any = None) -> dict[str, Any]:
    """The options of a command, as tyro reads them; or its help."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            with contextlib.redirect_stdout(stream or sys.stdout):
                options = tyro.cli(_ALL, args=words, prog="longtake", description=_DESCRIPTION)
    except SystemExit as end:
        if end.code:
            _refused(_one_line_of_box(said.getvalue(), command), command)
        if stream is not None:
            return {}
        raise
    return dict(vars(options))


def _one_line_of_box(box: str, command: str) -> str:
    """What tyro says in a box of several lines, in one."""
    lines = [line.strip(" │") for line in box.splitlines() if line[:1] not in ("╭", "╰")]
    inside = [line for line in lines if line]
    if not box.startswith("╭"):  # in plain letters the title is a line, and a rule below it
        inside = inside[2:]
    rules = [at for at, line in enumerate(inside) if not line.strip("─-")]
    words = " ".join(inside[: rules[0]] if rules else inside).rstrip(".")
    if missing := re.match(r"Missing value for argument '(\S+)'", words):
        return f"{missing[1]} wants a value"
    if wrong := re.match(r"Error parsing --(\S+):", words):
        field = FIELDS.get(command, {}).get(wrong[1].replace("-", "_"))
        wanted = "another value" if field is None else metavar_of(field.annotation)
        return f"--{wrong[1]} wants {wanted}"
    if more := re.match(r"Unrecognized options: (.*)", words):
        if "prompt" in FIELDS.get(command, {}):
            return f"more words than one prompt ({more[1]}): put it in quotes"
        return f"{more[1]}: more than {command} takes"
    return words


_ALL: Any = functools.reduce(
    operator.or_,
    (
        Annotated[options, tyro.conf.subcommand(name, description=description)]
        for name, (options, description) in COMMANDS.items()
    ),
)
