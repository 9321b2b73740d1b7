"""Files of shots: JSON lines, CSV, plain text or YAML; read row by row, each with its line.

A row that cannot be read is told, and does not hide the others.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from longtake.errors import RequestError, one_line

MAX_FILE_BYTES = 256 * 2**20
MAX_LINE_BYTES = 2**20
MAX_ROWS = 100_000
_DEEPEST = 20
_MOST_NODES = 1_000_000
_LISTS = ("sigmas", "decode_tile_size", "decode_tile_stride")
"""Fields of several values, which a cell of text holds with blanks between."""

_NO_UTF8 = "is not UTF-8: save the file in that encoding"


@dataclass(frozen=True)
class Row:
    """One shot as it stands in a file.

    Attributes:
        line: where it begins, counted from 1.
        values: by the name of the field.
    """

    line: int
    values: dict[str, Any]


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used, and why."""

    line: int
    reason: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.reason}"


class _BadRowError(Exception):
    """Raised where a row is found to be of no use."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(reason)
        self.bad = BadRow(line, reason)


Rows = tuple[list[Row], list[BadRow]]


def read_shots(path: Path) -> Rows:
    """Read a file of shots.

    Returns:
        Its rows, and what of it is none.

    Raises:
        RequestError: it cannot be read, is of no known kind, or far too large.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise RequestError(
            f"shots={str(path)!r} has the suffix {path.suffix!r}: use {', '.join(_READERS)}"
        )
    try:
        if not path.is_file():  # a pipe would be waited for
            raise RequestError(f"shots={str(path)!r} is no file")
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or one_line(error)
        raise RequestError(f"shots={str(path)!r} cannot be read: {why}") from error
    if len(data) > MAX_FILE_BYTES:
        raise RequestError(
            f"shots={str(path)!r} is larger than {MAX_FILE_BYTES >> 20} MiB: split it"
        )
    # What is no UTF-8 is told of the row that it stands in.
    found, bad = reader(data.decode("utf-8-sig", "surrogateescape"))
    rows = []
    for row in found:
        if reason := _unwritable(row.values):
            bad.append(BadRow(row.line, reason))
        else:
            rows.append(row)
    if len(rows) > MAX_ROWS:
        raise RequestError(
            f"shots={str(path)!r} has {len(rows)} shots, {MAX_ROWS} at most: split it"
        )
    return rows, sorted(bad, key=lambda each: each.line)


def _each_line(text: str, row_of: Callable[[int, str], Row]) -> Rows:
    """A row a line, but for those that are blank."""
    rows: list[Row] = []
    bad: list[BadRow] = []
    for number, line in enumerate(text.split("\n"), start=1):
        words = line.strip()
        size = len(words)
        if size > MAX_LINE_BYTES:
            bad.append(BadRow(number, f"is {size} characters long, {MAX_LINE_BYTES} at most"))
        elif words:
            try:
                rows.append(row_of(number, words))
            except _BadRowError as error:
                bad.append(error.bad)
    return rows, bad


def _jsonl(text: str) -> Rows:
    return _each_line(text, _json_row)


def _json_row(number: int, line: str) -> Row:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise _BadRowError(number, f"has {_first_twice(name for name, _ in pairs)} twice")
        return found

    try:
        content = json.loads(line, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise _BadRowError(number, f"is no JSON: {one_line(error)}") from error
    if not isinstance(content, dict):
        raise _BadRowError(number, 'is no JSON object, such as {"prompt": "a cat"}')
    return Row(number, content)


def _txt(text: str) -> Rows:
    return _each_line(text, lambda number, line: Row(number, {"prompt": line}))


def _csv(text: str) -> Rows:
    """A header, then a row a shot; a cell in quotes may hold commas, quotes and line breaks."""
    csv.field_size_limit(MAX_LINE_BYTES)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: list[Row] = []
    bad: list[BadRow] = []
    header: list[str] = []
    line = 1
    try:
        for cells in reader:
            begun, line = line, reader.line_num + 1
            if not any(cell.strip() for cell in cells):
                continue
            if not header:
                header = [cell.strip() for cell in cells]
                if len(set(header)) < len(header) or "prompt" not in header:
                    why = "must name each column once, and one of them prompt"
                    return [], [BadRow(begun, f"the header {why}: {', '.join(header)[:200]}")]
            elif len(cells) > len(header):
                bad.append(BadRow(begun, f"has {len(cells)} cells under {len(header)} columns"))
            else:
                pairs = zip(header, cells, strict=False)
                rows.append(Row(begun, {name: cell for name, cell in pairs if cell != ""}))
    except csv.Error as error:
        bad.append(BadRow(line, f"is no CSV: {error}; what follows it was not read"))
    return rows, bad


def _yaml(text: str) -> Rows:
    """``defaults``, and a list of ``shots``; ``product`` in one, or beside them, gives every
    combination of its lists."""
    broken = [n for n, line in enumerate(text.split("\n"), start=1) if _unwritable(line)]
    if broken:
        return [], [BadRow(number, _NO_UTF8) for number in broken]
    try:
        _check_nesting(text)
        loader = _LOADER(text)
        try:
            return _yaml_shots(loader, loader.get_single_node())
        finally:
            loader.dispose()
    except _BadRowError as error:
        return [], [error.bad]
    except _NOT_YAML as error:
        return [], [_no_yaml(error, 1)]


_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_NOT_YAML = (yaml.YAMLError, ValueError, TypeError, RecursionError)


def _no_yaml(error: BaseException, line: int) -> BadRow:
    mark = getattr(error, "problem_mark", None)
    return BadRow(line if mark is None else mark.line + 1, f"is no YAML: {one_line(error)[:200]}")


def _check_nesting(text: str) -> None:
    """Refuse what is nested without end, or would be once its aliases are put in: the parser of C
    ends the process then, and what is made of it fills the memory."""
    sizes: dict[str, int] = {}
    open_nodes: list[tuple[str | None, int]] = []
    total = 0

    def close(anchor: str | None, size: int) -> None:
        nonlocal total
        if anchor is not None:
            sizes[anchor] = size
        if open_nodes:
            name, so_far = open_nodes.pop()
            open_nodes.append((name, so_far + size))
        else:
            total += size

    for event in yaml.parse(text, Loader=_LOADER):
        line = 1 if event.start_mark is None else event.start_mark.line + 1
        if isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append((event.anchor, 1))
            if len(open_nodes) > _DEEPEST:
                raise _BadRowError(line, f"is nested deeper than {_DEEPEST}")
        elif isinstance(event, yaml.CollectionEndEvent):
            close(*open_nodes.pop())
        elif isinstance(event, yaml.ScalarEvent):
            close(event.anchor, 1)
        elif isinstance(event, yaml.AliasEvent):
            close(None, sizes.get(event.anchor or "", 1))
        if open_nodes and open_nodes[-1][1] > _MOST_NODES:
            raise _BadRowError(line, f"holds more than {_MOST_NODES} values, aliases put in")


def _yaml_shots(loader: Any, node: Any) -> Rows:
    if not isinstance(node, yaml.MappingNode):
        return [], [BadRow(1, "must map shots to a list, and may have defaults and product")]
    names = [str(key.value) for key, _ in node.value]
    if twice := _first_twice(names):
        return [], [BadRow(1, f"has {twice} twice")]
    parts = dict(zip(names, (value for _, value in node.value), strict=True))
    unknown = [name for name in names if name not in ("defaults", "shots", "product")]
    if unknown:
        at = parts[unknown[0]].start_mark.line + 1
        return [], [BadRow(at, f"has {unknown[0]}: use defaults, shots and product")]
    seen: set[int] = set()
    defaults = _mapping(loader, parts.get("defaults"), "defaults", seen)
    product = _mapping(loader, parts.get("product"), "product", seen)
    shots = parts.get("shots")
    if not isinstance(shots, yaml.SequenceNode):
        return [], [BadRow(1, "must have shots, a list")]
    rows: list[Row] = []
    bad: list[BadRow] = []
    for shot in shots.value:
        line = shot.start_mark.line + 1
        try:
            rows += _yaml_rows(loader, shot, defaults, product, seen)
        except _BadRowError as error:
            bad.append(error.bad)
        except _NOT_YAML as error:
            bad.append(_no_yaml(error, line))
        if len(rows) > MAX_ROWS:
            return [], [BadRow(line, f"makes more than {MAX_ROWS} shots")]
    return rows, bad


def _yaml_rows(
    loader: Any,
    node: Any,
    defaults: dict[str, Any],
    product: dict[str, Any],
    seen: set[int],
) -> Iterator[Row]:
    line = node.start_mark.line + 1
    if isinstance(node, yaml.ScalarNode):
        if loader.construct_object(node) is None:
            raise _BadRowError(line, "is empty: write a prompt, or a mapping with one")
        values = {"prompt": str(node.value)}
    else:
        values = _mapping(loader, node, "a shot", seen)
    own = values.pop("product", None)
    if own is not None and not isinstance(own, dict):
        raise _BadRowError(line, "product must map fields to lists of values")
    axes = {**product, **(own or {})}
    for name, choices in axes.items():
        if not isinstance(choices, list) or not choices:
            raise _BadRowError(line, f"product of {name} must be a list of values")
    total = 1
    for choices in axes.values():
        total *= len(choices)
    if total > MAX_ROWS:
        raise _BadRowError(line, f"makes {total} shots, {MAX_ROWS} at most")
    for number, chosen in enumerate(itertools.product(*axes.values()), start=1):
        row = {**defaults, **values, **dict(zip(axes, chosen, strict=True))}
        if axes and values.get("id") is not None:
            row["id"] = f"{values['id']}-{number}"
        if axes and values.get("output"):
            output = Path(str(values["output"]))
            row["output"] = str(output.with_name(f"{output.stem}-{number}{output.suffix}"))
        yield Row(line, row)


def _mapping(loader: Any, node: Any, what: str, seen: set[int]) -> dict[str, Any]:
    """A mapping whose keys stand there once.

    Args:
        seen: nodes that were looked at: an alias of one has other mappings merged into it by now.
    """
    if node is None:
        return {}
    line = node.start_mark.line + 1
    if not isinstance(node, yaml.MappingNode):
        raise _BadRowError(line, f"{what} must map fields to values")
    names = (str(key.value) for key, _ in node.value if isinstance(key, yaml.ScalarNode))
    if id(node) not in seen and (twice := _first_twice(names)):
        raise _BadRowError(line, f"{what} has {twice} twice")
    seen.add(id(node))
    made: dict[Any, Any] = loader.construct_object(node, deep=True)
    return {str(name): value for name, value in made.items()}


_READERS: dict[str, Callable[[str], Rows]] = {
    ".jsonl": _jsonl,
    ".csv": _csv,
    ".txt": _txt,
    ".yaml": _yaml,
    ".yml": _yaml,
}


def _first_twice(names: Iterable[str]) -> str:
    """The first name that was there before; empty if none was."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return ""


def _unwritable(value: Any) -> str:
    """Why a value cannot be written down again; empty if it can."""
    try:
        json.dumps(value, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError:
        return _NO_UTF8
    except (RecursionError, ValueError, TypeError):
        return "is nested too deeply"
    return ""


def as_fields(values: dict[str, Any]) -> dict[str, Any]:
    """The values of a row as a request takes them: none for what is left out, lists as lists."""
    named = {
        str(name).strip().replace("-", "_"): value
        for name, value in values.items()
        if value is not None
    }
    for name in _LISTS:
        if isinstance(text := named.get(name), str):
            named[name] = text.replace(",", " ").split()
    return named
