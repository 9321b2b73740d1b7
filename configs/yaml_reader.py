"""A YAML reader that resolves no types and keeps line numbers.

``off``, ``12:30``, ``007`` and ``1e3`` stay strings, as on the command line, and the declared field
parses them; only an empty value, ``null`` and ``~`` are None. Tags are rejected, keys must be
unique within a mapping, and ``<<`` merges mappings. PyYAML's own constructors cannot do this, so
this module builds values from the events of its parser.
"""

from __future__ import annotations

import collections.abc
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from longtake.errors import one_line

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_MAX_DEPTH = 20
_MAX_ALIASED = 10_000_000
"""Maximum number of values that all aliases expand to."""

_NONE = frozenset(("", "~", "null", "Null", "NULL"))
_TAGS = frozenset(f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null"))
_COLLECTION_TAGS = frozenset((None, "!", "tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"))
_CONTROL = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ufffe\uffff]")


class YamlError(ValueError):
    """The text is not YAML, or uses a feature that is not supported.

    Attributes:
        line: Line number, from 1.
        reason: What is wrong with the line.
    """

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(f"line {line}: {reason}")
        self.line, self.reason = line, reason


class Mapping(dict[str, Any]):
    """A YAML mapping.

    Attributes:
        line: First line, from 1.
        lines: Lines of the keys that are on other lines.
    """

    __slots__ = ("line", "lines")

    def __init__(self, line: int) -> None:
        super().__init__()
        self.line = line
        self.lines: dict[str, int] = _SAME_LINE

    def line_of(self, key: str) -> int:
        """The line of a key."""
        return self.lines.get(key, self.line)


class Sequence(list[Any]):
    """A YAML sequence.

    Attributes:
        line: First line, from 1.
        lines: Line of each value.
    """

    __slots__ = ("line", "lines")

    def __init__(self, line: int) -> None:
        super().__init__()
        self.line = line
        self.lines: list[int] = []


_SAME_LINE: dict[str, int] = {}
_NO_FALLBACK: collections.abc.Mapping[str, Any] = {}

ModelT = TypeVar("ModelT", bound=BaseModel)


@dataclass(frozen=True)
class InvalidValue:
    """A placeholder for an invalid value."""

    error: YamlError


def read_yaml(content: bytes) -> Any:
    """Parse a file with one document: a Mapping, a Sequence, a string, or None.

    Raises:
        YamlError: The first error.
    """
    try:
        value = read_yaml_leniently(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise YamlError(line, "is not UTF-8: save the file in that encoding") from error
    for broken in invalid_values(value):
        raise broken.error
    return value


def read_yaml_as(
    kind: type[ModelT], content: bytes, fallback: collections.abc.Mapping[str, Any] = _NO_FALLBACK
) -> ModelT:
    """Parse a file into a pydantic model.

    Args:
        kind: The model class.
        content: The bytes of the file.
        fallback: Values of fields that the file leaves out.

    Raises:
        YamlError: The first error, with its line.
    """
    value = read_yaml(content)
    if value is None:
        value = Mapping(1)
    try:
        return kind.model_validate({**fallback, **value} if isinstance(value, Mapping) else value)
    except ValidationError as error:
        line, inner = 1, value
        for part in error.errors()[0]["loc"]:
            if isinstance(inner, Mapping) and part in inner:
                line, inner = inner.line_of(str(part)), inner[str(part)]
            elif isinstance(inner, Sequence) and isinstance(part, int) and part < len(inner):
                line, inner = inner.lines[part], inner[part]
        raise YamlError(line, one_line(error, kind.model_fields)) from error


def read_yaml_leniently(text: str) -> Any:
    """Parse like :func:`read_yaml`, with an :class:`InvalidValue` in place of each invalid value.

    Raises:
        YamlError: The text is not YAML.
    """
    found = _CONTROL.search(text)
    if found is not None:
        line = text.count("\n", 0, found.start()) + 1
        raise YamlError(
            line, f"contains {found[0]!r}, which YAML does not allow: save it as plain text"
        )
    try:
        return _Builder().build(yaml.parse(text, Loader=_LOADER))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        reason = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
        line = 1 if mark is None else mark.line + 1
        raise YamlError(line, f"is not YAML: {' '.join(reason.split())[:200]}") from error


def invalid_values(value: Any, seen: set[int] | None = None) -> Iterator[InvalidValue]:
    """Yield the invalid values within a value, each once even if aliases repeat it."""
    seen = set() if seen is None else seen
    if isinstance(value, InvalidValue):
        yield value
    elif isinstance(value, Mapping | Sequence) and id(value) not in seen:
        seen.add(id(value))
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from invalid_values(each, seen)


@dataclass
class _Open:
    """A collection whose end has not been parsed yet.

    Attributes:
        value: The collection.
        anchor: Its anchor; None without one.
        size: Number of values in it so far, including keys and itself.
        key: Key whose value comes next; None in a sequence, and before a key.
        merged: Mappings to merge (``<<``).
        broken: Why the collection is invalid; None if it is valid.
    """

    value: Mapping | Sequence
    anchor: str | None
    size: int = 1
    key: str | None = None
    merged: list[Mapping] = field(default_factory=list)
    broken: InvalidValue | None = None

    @property
    def wants_key(self) -> bool:
        """Whether a key comes next."""
        return self.key is None and isinstance(self.value, Mapping)


class _Builder:
    """Builds values from parser events. Without a tree of nodes, nesting is limited before libyaml
    recurses, and aliases cannot exhaust memory."""

    def __init__(self) -> None:
        self._open: list[_Open] = []
        self._anchors: dict[str, tuple[Any, int]] = {}
        self._root: Any = None
        self._aliased = 0
        self._keys: dict[str, str] = {}

    def build(self, events: Iterator[Any]) -> Any:
        """The value of a stream of events."""
        documents = 0
        for event in events:
            kind = type(event)
            if kind is yaml.ScalarEvent:
                self._add(self._scalar(event), 1, event.anchor, event.start_mark.line + 1)
            elif kind is yaml.MappingStartEvent:
                self._begin(Mapping(event.start_mark.line + 1), event)
            elif kind is yaml.SequenceStartEvent:
                self._begin(Sequence(event.start_mark.line + 1), event)
            elif kind in (yaml.MappingEndEvent, yaml.SequenceEndEvent):
                ended = self._open.pop()
                _merge(ended)
                self._add(ended.broken or ended.value, ended.size, ended.anchor, ended.value.line)
            elif kind is yaml.AliasEvent:
                self._alias(event.anchor, event.start_mark.line + 1)
            elif kind is yaml.DocumentStartEvent:
                documents += 1
                if documents > 1:
                    line = event.start_mark.line + 1
                    raise YamlError(line, "starts a second document: write one document per file")
        return self._root

    def _scalar(self, event: Any) -> Any:
        plain = event.implicit[0]
        if event.tag not in (None, "!") and event.tag not in _TAGS:
            return _tagged(event)
        if plain and event.value == "<<" and self._open and self._open[-1].wants_key:
            return _MERGE
        return None if plain and event.value in _NONE else event.value

    def _begin(self, value: Mapping | Sequence, event: Any) -> None:
        self._open.append(_Open(value, event.anchor))
        if event.tag not in _COLLECTION_TAGS:
            self._open[-1].broken = _tagged(event)
        if len(self._open) > _MAX_DEPTH:
            raise YamlError(value.line, f"is nested deeper than {_MAX_DEPTH}")
        if event.anchor is not None:
            reason = f"has *{event.anchor} inside &{event.anchor}, which would contain itself"
            self._anchors[event.anchor] = InvalidValue(YamlError(value.line, reason)), 1

    def _alias(self, anchor: str, line: int) -> None:
        value, size = self._anchors.get(anchor, (None, 0))
        if size == 0:
            value = InvalidValue(YamlError(line, f"has *{anchor}, but no &{anchor} before it"))
        self._aliased += size
        if self._aliased > _MAX_ALIASED:
            raise YamlError(line, f"has more than {_MAX_ALIASED} values once aliases are expanded")
        self._add(value, size, None, line)

    def _add(self, value: Any, size: int, anchor: str | None, line: int) -> None:
        """Add a complete value to the enclosing collection."""
        if anchor is not None:
            self._anchors[anchor] = value, size
        if not self._open:
            self._root = value
            return
        parent = self._open[-1]
        parent.size += size
        if isinstance(parent.value, Sequence):
            parent.value.append(value)
            parent.value.lines.append(line)
        elif parent.wants_key:
            self._set_key(parent, value, line)
        else:
            _set(parent, value, line)

    def _set_key(self, parent: _Open, key: Any, line: int) -> None:
        parent.key = _MERGE if key is _MERGE else self._keys.setdefault(str(key), str(key))
        if not isinstance(key, str):
            parent.broken = InvalidValue(YamlError(line, "has a key that is not text"))
        elif key in parent.value:
            parent.broken = InvalidValue(YamlError(line, f"has {key[:60]} twice"))


class _Merge(str):
    """The merge key, as opposed to a quoted "<<"."""


_MERGE = _Merge("<<")


def _tagged(event: Any) -> InvalidValue:
    line = event.start_mark.line + 1
    return InvalidValue(
        YamlError(line, f"has the tag {event.tag[:60]}, which is not supported: remove it")
    )


def _set(parent: _Open, value: Any, line: int) -> None:
    key, mapping = parent.key, parent.value
    assert key is not None and isinstance(mapping, Mapping)
    parent.key = None
    if key is _MERGE:
        merged = value if isinstance(value, Sequence) else [value]
        if not all(isinstance(each, Mapping) for each in merged):
            parent.broken = InvalidValue(
                YamlError(line, "has << before something other than a mapping")
            )
        else:
            parent.merged += merged
        return
    mapping[key] = value
    if line != mapping.line:
        if mapping.lines is _SAME_LINE:
            mapping.lines = {}
        mapping.lines[key] = line


def _merge(ended: _Open) -> None:
    """Insert merged keys before a mapping's own keys, which take precedence."""
    if ended.merged:
        mapping = ended.value
        assert isinstance(mapping, Mapping)
        own, lines = dict(mapping), dict(mapping.lines)
        mapping.clear()
        for each in reversed(ended.merged):
            mapping.update(each)
            lines = {**{key: each.line_of(key) for key in each}, **lines}
        mapping.update(own)
        mapping.lines = lines
