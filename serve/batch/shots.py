"""Reads shots files (JSON Lines, CSV, plain text, YAML) into rows with line numbers.

An invalid row is reported and does not hide the others.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longtake.configs.fields.sizes import SHORTHANDS_OF, merge_fields
from longtake.configs.yaml_reader import (
    InvalidValue,
    Mapping,
    Sequence,
    YamlError,
    invalid_values,
    read_yaml_leniently,
)
from longtake.errors import RequestError, is_utf8, one_line
from longtake.files.reading import FileTooLargeError, read_regular

MAX_FILE_BYTES = 256 * 2**20
MAX_LINE_BYTES = 2**20
MAX_ROWS = 100_000
_LIST_FIELDS = ("sigmas", "decode_tile_size", "decode_tile_stride")
"""Fields with several values, separated by spaces or commas in text cells."""

_NO_UTF8 = "is not UTF-8: save the file in that encoding"

_Place = tuple[str, int]
"""A field and the line of its value."""

_Choice = tuple[Any, _Place]
"""A value of a product, and its place."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a shots file, not checked yet.

    Attributes:
        line: First line, counted from 1.
        values: Values by field name.
        sources: YAML mappings that the values come from, in order of precedence.
        chosen: Fields with a value of a product, and the lines of these values.
    """

    line: int
    values: dict[str, Any]
    sources: tuple[Mapping, ...] = ()
    chosen: tuple[_Place, ...] = ()

    def line_of(self, field: str) -> int:
        """The line of a field's value, or of a shorthand for it; else the first line of the row."""
        for name in (field, *SHORTHANDS_OF.get(field, ())):
            for chosen, line in self.chosen:
                if chosen == name:
                    return line
            for source in self.sources:
                if name in source:
                    return source.line_of(name)
        return self.line


@dataclass(frozen=True)
class InvalidRow:
    """A row that cannot be rendered, and the reason."""

    line: int
    reason: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.reason}"


class _BadRowError(Exception):
    """A row is invalid; raised while it is parsed."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(reason)
        self.bad = InvalidRow(line, reason)


Rows = tuple[list[Row], list[InvalidRow]]


def read_shots(path: Path) -> Rows:
    """Read a shots file.

    Returns:
        The rows, and the invalid rows in the order of their lines.

    Raises:
        RequestError: The file cannot be read, has an unknown suffix, or is too large.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise RequestError(
            f"shots={str(path)!r} has the suffix {path.suffix!r}: use {', '.join(_READERS)}"
        )
    try:
        data = read_regular(path, MAX_FILE_BYTES)
    except FileTooLargeError as error:
        raise RequestError(f"shots={str(path)!r}: {error}: split it") from error
    except OSError as error:
        raise RequestError(f"shots={str(path)!r} cannot be read: {error.strerror}") from error
    # Invalid UTF-8 is reported for the row that contains it.
    found, bad = reader(data.decode("utf-8-sig", "surrogateescape"))
    rows = []
    for row in found:
        if reason := _unwritable(row.values):
            bad.append(InvalidRow(row.line, reason))
        else:
            rows.append(row)
    if len(rows) > MAX_ROWS:
        raise RequestError(
            f"shots={str(path)!r} has {len(rows)} shots, {MAX_ROWS} at most: split it"
        )
    return rows, sorted(set(bad), key=lambda each: each.line)


def _each_line(text: str, row_of: Callable[[int, str], Row]) -> Rows:
    """One row per line; blank lines are skipped."""
    rows: list[Row] = []
    bad: list[InvalidRow] = []
    for number, line in enumerate(text.split("\n"), start=1):
        content = line.strip()
        size = len(content)
        if size > MAX_LINE_BYTES:
            bad.append(InvalidRow(number, f"is {size} characters long, {MAX_LINE_BYTES} at most"))
        elif content:
            try:
                rows.append(row_of(number, content))
            except _BadRowError as error:
                bad.append(error.bad)
    return rows, bad


def _jsonl(text: str) -> Rows:
    return _each_line(text, _json_row)


def _json_row(number: int, line: str) -> Row:
    def without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            raise _BadRowError(number, f"has {_first_duplicate(name for name, _ in pairs)} twice")
        return values

    try:
        content = json.loads(line, object_pairs_hook=without_duplicates)
    except (ValueError, RecursionError) as error:
        raise _BadRowError(number, f"is not JSON: {one_line(error)}") from error
    if not isinstance(content, dict):
        raise _BadRowError(number, 'is not a JSON object, such as {"prompt": "a cat"}')
    return Row(number, content)


def _txt(text: str) -> Rows:
    return _each_line(text, lambda number, line: Row(number, {"prompt": line}))


def _csv(text: str) -> Rows:
    """A header, then one row per shot. Quoted cells may contain commas, quotes and line breaks."""
    csv.field_size_limit(MAX_LINE_BYTES)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: list[Row] = []
    bad: list[InvalidRow] = []
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
                    return [], [InvalidRow(begun, f"the header {why}: {', '.join(header)[:200]}")]
            elif len(cells) > len(header):
                bad.append(InvalidRow(begun, f"has {len(cells)} cells under {len(header)} columns"))
            else:
                pairs = zip(header, cells, strict=False)
                rows.append(Row(begun, {name: cell for name, cell in pairs if cell != ""}))
    except csv.Error as error:
        bad.append(InvalidRow(line, f"is not CSV: {error}; the lines after it were not read"))
    return rows, bad


def _yaml(text: str) -> Rows:
    """``defaults`` and a list of ``shots``. A ``product`` of the file or of a shot expands to all
    combinations of its lists."""
    if not is_utf8(text):
        broken = [n for n, line in enumerate(text.split("\n"), start=1) if not is_utf8(line)]
        return [], [InvalidRow(number, _NO_UTF8) for number in broken]
    try:
        return _yaml_shots(read_yaml_leniently(text))
    except YamlError as error:
        return [], [InvalidRow(error.line, error.reason)]
    except _BadRowError as error:
        return [], [error.bad]


def _yaml_shots(document: Any) -> Rows:
    parts = _mapping(document, 1, "the file", deep=False)
    for name in parts:
        if name not in _PARTS:
            use = "use defaults, shots and product"
            raise _BadRowError(parts.line_of(name), f"has {name[:60]}: {use}")
    defaults, product = (
        _mapping(parts.get(name), parts.line_of(name), name) for name in ("defaults", "product")
    )
    shots = parts.get("shots")
    if not isinstance(shots, Sequence):
        raise _BadRowError(parts.line_of("shots"), "must have shots, a list")
    axes = _axes(product, parts.line_of("product"))
    rows: list[Row] = []
    bad: list[InvalidRow] = []
    for shot, line in zip(shots, shots.lines, strict=True):
        try:
            rows += _yaml_rows(shot, line, defaults, axes)
        except _BadRowError as error:
            bad.append(error.bad)
        if len(rows) > MAX_ROWS:
            return [], [InvalidRow(line, f"makes more than {MAX_ROWS} shots")]
    return rows, bad


def _mapping(value: Any, line: int, what: str, *, deep: bool = True) -> Mapping:
    """A mapping with normalized field names; empty for a missing value.

    Args:
        value: The value to check.
        line: Line of the value.
        what: Name of the value in error messages.
        deep: Whether to refuse syntax errors inside the mapping, too.
    """
    if isinstance(value, InvalidValue) or deep:
        for broken in invalid_values(value):
            raise _BadRowError(broken.error.line, broken.error.reason)
    if value is None and deep:
        return Mapping(line)
    if not isinstance(value, Mapping):
        raise _BadRowError(line, f"{what} must map {'fields to values' if deep else _MAPS}")
    if any("-" in name for name in value):
        named = Mapping(value.line)
        named.lines = {name.replace("-", "_"): value.line_of(name) for name in value}
        for name, each in value.items():
            named[name.replace("-", "_")] = each
        return named
    return value


_PARTS = ("defaults", "shots", "product")
_MAPS = "shots to a list, and may have defaults and product"


def _axes(product: Mapping, line: int) -> dict[str, list[_Choice]]:
    axes = {}
    for name, choices in product.items():
        if not isinstance(choices, Sequence) or not choices:
            at = product.line_of(name)
            raise _BadRowError(at, f"product of {name} must be a list of values")
        lines = choices.lines
        axes[name] = [(value, (name, at)) for value, at in zip(choices, lines, strict=True)]
    return axes


def _yaml_rows(
    shot: Any, line: int, defaults: Mapping, axes: dict[str, list[_Choice]]
) -> Iterator[Row]:
    if shot is None:
        raise _BadRowError(line, "is empty: write a prompt, or a mapping with one")
    if isinstance(shot, str):
        values = Mapping(line)
        values["prompt"] = shot
    else:
        values = _mapping(shot, line, "a shot")
    named: dict[str, Any] = values
    if "product" in values:
        at = values.line_of("product")
        own = values["product"]
        if own is not None and not isinstance(own, Mapping):
            raise _BadRowError(at, "product must map fields to lists of values")
        axes = {**axes, **_axes(_mapping(own, at, "product"), at)}
        named = {name: value for name, value in values.items() if name != "product"}
    total = math.prod(len(choices) for choices in axes.values())
    if total > MAX_ROWS:
        raise _BadRowError(line, f"makes {total} shots, {MAX_ROWS} at most")
    row = merge_fields(defaults, named) if defaults else named
    if not axes:
        yield Row(line, row, (values, defaults))
        return
    for number, chosen in enumerate(itertools.product(*axes.values()), start=1):
        made = merge_fields(row, {name: value for value, (name, _) in chosen})
        if named.get("id") is not None:
            made["id"] = f"{named['id']}-{number}"
        if named.get("output"):
            output = Path(str(named["output"]))
            made["output"] = str(output.with_name(f"{output.stem}-{number}{output.suffix}"))
        yield Row(line, made, (values, defaults), tuple(place for _, place in chosen))


_READERS: dict[str, Callable[[str], Rows]] = {
    ".jsonl": _jsonl,
    ".csv": _csv,
    ".txt": _txt,
    ".yaml": _yaml,
    ".yml": _yaml,
}


def _first_duplicate(names: Iterable[str]) -> str:
    """The first name that occurs twice; empty if there is none."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return ""


def _unwritable(value: Any) -> str:
    """Why a value cannot be serialized; empty if it can."""
    try:
        json.dumps(value, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError:
        return _NO_UTF8
    except (RecursionError, ValueError, TypeError):
        return "is nested too deeply"
    return ""


def as_fields(values: dict[str, Any]) -> dict[str, Any]:
    """The values of a row as request fields: names normalized, None dropped, lists split."""
    named = {
        str(name).strip().replace("-", "_"): value
        for name, value in values.items()
        if value is not None
    }
    for name in _LIST_FIELDS:
        if isinstance(text := named.get(name), str):
            named[name] = text.replace(",", " ").split()
    if isinstance(text := named.get("lora"), str):  # names may have spaces
        named["lora"] = [each.strip() for each in text.split(",")]
    return named
