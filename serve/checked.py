"""Rows of a file of shots, checked: what each renders, and where it goes."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import ValidationError

from longtake.configs.request import ResolvedRequest, VideoRequest
from longtake.engine.engine import VideoEngine
from longtake.engine.files import cause
from longtake.engine.jobs import WORK_FOLDER
from longtake.engine.video_writer import metadata_path, output_paths, output_type
from longtake.errors import RefusedInputError, RequestError, one_line
from longtake.serve.outputs import is_inside, told_of
from longtake.serve.shots import BadRow, Row, as_fields

REPORTS = ("report.json", "report.html")
_LONGEST_NAME = 200
_OF_A_ROW = ("id", "output")


@dataclass(frozen=True)
class Shot:
    """A row that can be rendered.

    Attributes:
        line: of the file.
        id: its own, or of its content.
        output: path in the folder of outputs.
        request: with nothing left out.
        fingerprint: of the row and of all else that its output follows from.
    """

    line: int
    id: str
    output: str
    request: ResolvedRequest
    fingerprint: str


class ShotChecker:
    """Checks rows against a model, a folder, and each other.

    Args:
        engine: that will render them; nothing is loaded.
        folder: of the outputs.
        source: the file; pictures are named from its folder.
        defaults: fields of a request that a row need not name.
    """

    def __init__(
        self, engine: VideoEngine, folder: Path, source: Path, defaults: dict[str, Any]
    ) -> None:
        self._engine = engine
        self._folder = folder
        self._pictures = source.absolute().parent
        self._defaults = defaults
        self._engine_part = engine.identity_part()
        self._stays_inside = cache(partial(is_inside, folder))

    def check(self, rows: Iterable[Row]) -> tuple[list[Shot], list[BadRow]]:
        """The shots of some rows, and those that are none, with the reason."""
        shots: list[Shot] = []
        bad: list[BadRow] = []
        taken = _Taken(self._folder)
        for row in rows:
            try:
                shot = self._checked(row, taken)
                taken.add(shot)
                shots.append(shot)
            except RefusedInputError as error:
                bad.append(BadRow(row.line, str(error)))
            except OSError as error:
                bad.append(BadRow(row.line, f"cannot be looked into: {cause(error)}"))
        return shots, bad

    def _checked(self, row: Row, taken: _Taken) -> Shot:
        values = as_fields(row.values)
        own = {name: values.pop(name) for name in _OF_A_ROW if name in values}
        if not {"prompt"} <= values.keys() | self._defaults.keys():
            raise RequestError("has no prompt")
        name = _checked_id(own["id"]) if "id" in own else _id_of(values, taken.ids)
        output = str(own.get("output", f"{name}.mp4"))
        path = self._place(output)
        if "image" in values:  # as a folder would be by a shell's cd
            values["image"] = self._pictures / os.path.expanduser(str(values["image"]))
        asked = {**self._defaults, **values, "output_type": output_type(path)}
        try:
            request = VideoRequest(**asked)
        except (ValidationError, TypeError) as error:
            raise RequestError(one_line(error)) from error
        resolved = self._engine.resolve(request)
        told = {
            "request": request.model_dump(mode="json"),
            "image": resolved.image_sha256,
            "output": output,
            "engine": self._engine_part,
        }
        return Shot(row.line, name, str(PurePosixPath(output)), resolved, _digest(told))

    def _place(self, output: str) -> Path:
        """Where an output goes: nowhere but in the folder."""
        pure = PurePosixPath(output)
        path = self._folder / pure
        if not output or "\0" in output or pure.name in ("", ".."):
            raise RequestError(f"output={output!r} is no name of a file")
        if pure.is_absolute() or ".." in pure.parts or not self._stays_inside(path.parent):
            raise RequestError(f"output={output!r} leaves {self._folder}: name a path inside of it")
        if any(len(os.fsencode(part)) > _LONGEST_NAME for part in pure.parts):
            raise RequestError(f"output={output[:60]!r}...: {_LONGEST_NAME} bytes a name at most")
        if pure.parts[0] == WORK_FOLDER:
            raise RequestError(f"output={output!r}: {WORK_FOLDER} is the batch's own")
        return path


class _Taken:
    """The names that rows have taken so far, with the line of each: of shots, of files, and of
    folders that files are in.

    Args:
        folder: of the outputs.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.ids: dict[str, int] = {}
        self._files: dict[str, int] = {}
        self._folders: dict[str, int] = {}

    def add(self, shot: Shot) -> None:
        """Take a shot's names.

        Raises:
            RequestError: one is taken: by another row, or by what is no output.
        """
        if shot.id in self.ids:
            raise RequestError(f"id={shot.id!r} is that of line {self.ids[shot.id]}, too")
        path = self._folder / shot.output
        metadata = metadata_path(path)
        written = [*output_paths(path, shot.request.num_videos), metadata]
        names = [str(each.relative_to(self._folder)) for each in written]
        parents = {str(up) for name in names for up in PurePosixPath(name).parents}
        folders = sorted(parents - {"."})
        for name, each in zip(names, written, strict=True):
            if reason := self._taken_by(name, folders) or _in_the_way(each, metadata, shot):
                raise RequestError(f"output={shot.output!r} writes {name}, {reason}")
        self.ids[shot.id] = shot.line
        self._files.update(dict.fromkeys(names, shot.line))
        self._folders.update(dict.fromkeys(folders, shot.line))

    def _taken_by(self, name: str, folders: Sequence[str]) -> str:
        if name in REPORTS:
            return "which is the batch's own: name another"
        if name in self._files:
            return f"as line {self._files[name]}"
        if name in self._folders:
            return f"into which line {self._folders[name]} writes: name another"
        inside = next((up for up in folders if up in self._files), "")
        return f"inside of what line {self._files[inside]} writes: name another" if inside else ""


def _in_the_way(path: Path, metadata: Path, shot: Shot) -> str:
    """What stands at a name already and is not this shot's to replace."""
    if path.suffix and path.is_dir():
        return "and a folder is there already"
    if not path.suffix and path.is_file():
        return "and a file is there already"
    if path.is_dir() and any(path.iterdir()) and told_of(metadata).get("id") != shot.id:
        return "and a folder is there already"
    return ""


def _checked_id(name: object) -> str:
    text = str(name) if isinstance(name, str | int | float) else ""
    if not text.strip() or text.startswith(".") or "/" in text or not text.isprintable():
        raise RequestError(f"id={name!r} must be a word that can be a file's name")
    if len(text.encode()) > _LONGEST_NAME // 2:
        raise RequestError(f"id={text[:60]!r}...: {_LONGEST_NAME // 2} bytes at most")
    return text


def _id_of(values: dict[str, Any], ids: dict[str, int]) -> str:
    """Of a row without one: some words of its prompt, and a digest of it, so that it stays the same
    when other rows come before it. Rows that are alike are counted."""
    words = re.sub(r"[^a-z0-9]+", "-", str(values.get("prompt", "")).lower()).strip("-")
    digest = _digest({name: str(value) for name, value in values.items()})[:8]
    name = f"{words[:40].strip('-')}-{digest}".strip("-")
    number, counted = 1, name
    while counted in ids:
        number += 1
        counted = f"{name}-{number}"
    return counted


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
