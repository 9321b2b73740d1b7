"""Parses the command line. An error is one line on stderr, with a suggestion, and exit code 2.

tyro parses the values and prints the help. It reports errors in a box of several lines, and the
module that formats them (``tyro._errors``) is private: so each word is checked before tyro sees it.
"""

from __future__ import annotations

import contextlib
import itertools
import shlex
import sys
from dataclasses import field, make_dataclass
from typing import Annotated, Any, NoReturn

import tyro

from longtake.cli.options import COMMANDS, Option
from longtake.errors import did_you_mean, is_utf8, original_bytes, shorten

_DESCRIPTION = "Long videos from diffusion transformers on any number of ranks."
_HELP = ("help", "--help", "-h")
_VERSION = ("--version", "-V")
_REPLACED = {"--shard-weights": "--weights split", "--no-shard-weights": "--weights resident"}
"""Options of earlier versions, and what replaces them."""


def parse(arguments: list[str]) -> tuple[str, dict[str, Any]]:
    """Parse a command and its options.

    Returns:
        The name of the command, a key of ``COMMANDS``, and the value of each of its options by
        name. Values are text. A declared option that is not given is None.

    Raises:
        SystemExit: With code 0 once help is printed, with 2 once an error is.
    """
    for word in arguments:
        if not is_utf8(word):
            _refuse_encoding(word)
    words, literal_prompt = arguments, None
    if "--" in arguments:
        at = arguments.index("--")
        words, literal_prompt = arguments[:at], " ".join(arguments[at + 1 :])
    command, words = _split_command(words)
    given = _check_words(command, words)
    options = _parse_values(command, words)
    for option in COMMANDS[command].options:
        if option.name not in given and not option.positional:
            options[option.name] = option.default  # tyro's switches are never None
    if literal_prompt is not None:
        if "prompt" not in options:
            _refuse(f"{literal_prompt!r} after -- is a prompt, and {command} takes none", command)
        options["literal_prompt"] = literal_prompt
    required = (option for option in COMMANDS[command].options if option.required)
    if missing := [option.metavar for option in required if options[option.name] is None]:
        _refuse(f"{command} needs {' and '.join(missing)}", command)
    return command, options


def _refuse(message: str, command: str = "") -> NoReturn:
    help_command = " ".join(filter(None, ("longtake", command, "--help")))
    print(f"longtake: {message}; see {help_command}", file=sys.stderr)
    raise SystemExit(2)


def _refuse_encoding(word: str) -> NoReturn:
    """Refuse an argument that is not UTF-8, or that the locale's encoding cannot hold."""
    try:
        original_bytes(word).decode()
        rule = "cannot be read in this locale"
        way_out = f"set LC_ALL=C.UTF-8, since {sys.getfilesystemencoding()} cannot hold it"
    except UnicodeError:
        rule, way_out = "is not UTF-8", "write it in that encoding, or rename the file"
    print(f"longtake: the argument {shorten(word)} {rule}: {way_out}", file=sys.stderr)
    raise SystemExit(2)


def _split_command(words: list[str]) -> tuple[str, list[str]]:
    """The command and the words after it, with every spelling of help turned into ``--help``."""
    if not words:
        with contextlib.redirect_stdout(sys.stderr), contextlib.suppress(SystemExit):
            _print_commands()
        raise SystemExit(2)
    first, rest = words[0], words[1:]
    if first in _VERSION:
        return "version", []
    if first in _HELP:
        topic = next((word for word in rest if not word.startswith("-")), None)
        if topic is None:
            _print_commands()
        return _split_command([topic])[0], ["--help"]
    if first in COMMANDS:
        if rest == ["help"] and "prompt" not in COMMANDS[first].fields:
            rest = ["--help"]
        return first, rest
    if first.startswith("-"):
        _refuse(f"{first} before a command: name one, as in longtake generate {first} ...")
    suggestion = did_you_mean(first, COMMANDS)
    if not suggestion and " " in first.strip():
        suggestion = f": longtake generate {shlex.quote(first)} renders a prompt"
    _refuse(f"{first[:60]!r} is not a command{suggestion or ': use ' + ', '.join(COMMANDS)}")


def _is_option(word: str) -> bool:
    """Whether a word looks like an option, by tyro's rule; a negative number does not."""
    return word.startswith("-") and word.lstrip("-")[:1].isalpha()


def _check_words(command: str, words: list[str]) -> set[str]:
    """Refuse unknown options and missing values; return the names of the given options."""
    options = COMMANDS[command].flags
    given = set()
    for at, word in enumerate(words):
        if not _is_option(word) or word in _HELP:
            continue
        flag, equals, _ = word.partition("=")
        if flag.startswith("--"):
            flag = flag.replace("_", "-")
        elif len(word) > 2 and word[:2] in options:  # -oPATH
            flag, equals = word[:2], "="
        option = options.get(flag)
        if option is None:
            _refuse_option(command, word, list(options))
        values = itertools.takewhile(lambda each: not _is_option(each), words[at + 1 :])
        if option.num_values == 0 and equals:
            _refuse(f"{flag} takes no value", command)
        if sum(1 for _ in values) + bool(equals) < (option.num_values or 0):
            _refuse(
                f"{flag} needs {'a value' if option.num_values == 1 else option.metavar}", command
            )
        given.add(option.name)
    return given


def _refuse_option(command: str, word: str, flags: list[str]) -> NoReturn:
    if any(each.isspace() for each in word.partition("=")[0]) and _takes_prompt(command):
        _refuse(f"{word[:60]!r} begins with a dash: put it after --, at the end", command)
    flag = word.partition("=")[0]
    if flag in _REPLACED and "--weights" in flags:
        _refuse(f"{flag} is now {_REPLACED[flag]}", command)
    suggestion = did_you_mean(flag, flags)
    if not suggestion:
        spellings = {flag, "--" + flag.lstrip("-").replace("_", "-")}
        takes = (name for name, each in COMMANDS.items() if spellings & each.flags.keys())
        suggestion = f", but of {others}" if (others := ", ".join(takes)) else ""
    _refuse(f"{flag} is not an option of {command}{suggestion}", command)


def _takes_prompt(command: str) -> bool:
    return "prompt" in COMMANDS[command].fields


def _parse_values(command: str, words: list[str]) -> dict[str, Any]:
    """The values of all options; prints the help and exits if a word asks for it."""
    arguments: Any = make_dataclass(command, map(_tyro_field, COMMANDS[command].options))
    options, extra = tyro.cli(
        arguments,
        args=words,
        prog=f"longtake {command}",
        description=COMMANDS[command].summary,
        return_unknown_args=True,
    )
    if extra and _takes_prompt(command):
        _refuse(f"more words than one prompt ({' '.join(extra)}): put it in quotes", command)
    if extra:
        _refuse(f"{command} takes no argument {' '.join(extra)!r}", command)
    return dict(vars(options))


def _tyro_field(option: Option) -> tuple[str, Any, Any]:
    """The dataclass field that declares an option to tyro."""
    kind = _KINDS[option.num_values]
    described = tyro.conf.arg(
        name=option.long or None,
        metavar=option.metavar or None,
        help=option.help,
        help_behavior_hint=option.hint,
        aliases=[option.short] if option.short else None,
    )
    annotated: Any = Annotated[kind, described]
    if option.positional:
        annotated = Annotated[annotated, tyro.conf.Positional]
    if kind is bool and not option.negatable:
        annotated = Annotated[annotated, tyro.conf.FlagCreatePairsOff]
    default = bool(option.default) if kind is bool else option.default
    return option.name, annotated, field(default=default)


_KINDS: dict[int | None, Any] = {
    0: bool,
    1: str | None,
    3: tuple[str, str, str] | None,
    None: tuple[str, ...] | None,
}
"""Types that tyro parses, by number of values."""


def _print_commands() -> NoReturn:
    """Print the help of longtake itself, and exit."""
    commands: Any = tyro.extras.subcommand_type_from_defaults(
        {name: make_dataclass(name, ())() for name in COMMANDS},
        {name: command.summary for name, command in COMMANDS.items()},
    )
    tyro.cli(commands, args=["--help"], prog="longtake", description=_DESCRIPTION)
    raise SystemExit(0)
