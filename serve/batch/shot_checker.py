"""Checks the rows of a shots file and resolves them to shots."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import ValidationError

from longtake.configs.fields.lora import parse_lora
from longtake.configs.fields.sizes import merge_fields
from longtake.configs.request import PICTURES, ResolvedRequest, VideoRequest
from longtake.engine.media.output_files import output_type
from longtake.engine.media.output_names import (
    check_index,
    fill_placeholders,
    placeholder_values,
    request_id,
)
from longtake.engine.resolve.outline import EngineOutline
from longtake.errors import RefusedInputError, RequestError, leading_field, one_line
from longtake.files.atomic import cause
from longtake.serve.batch.report import REPORTS
from longtake.serve.batch.shots import InvalidRow, Row, as_fields
from longtake.serve.queue.job_records import JobRecord
from longtake.serve.queue.job_store import WORK_FOLDER
from longtake.serve.runner.outputs import (
    FOREIGN_FILE,
    find_foreign_file,
    is_inside,
    written_paths,
)

_ENCODER = json.JSONEncoder(sort_keys=True)
_MAX_NAME_BYTES = 200
_ROW_FIELDS = ("id", "output")
_FIELDS = (*VideoRequest.model_fields, *_ROW_FIELDS)


@dataclass(frozen=True)
class Shot:
    """A valid row.

    Attributes:
        line: Line of the row in the file.
        id: ID of the row; derived from its content if it has none.
        output: Output path, relative to the output folder.
        request: The resolved request.
        fingerprint: Digest of everything that determines the output.
    """

    line: int
    id: str
    output: str
    request: ResolvedRequest
    fingerprint: str


class ShotChecker:
    """Checks rows against a model, a folder, and each other.

    Args:
        engine: Resolves the requests; nothing is loaded.
        folder: Output folder.
        source: Path of the shots file; paths of pictures and LoRAs are relative to its folder.
        defaults: Request fields for rows without them.
    """

    def __init__(
        self, engine: EngineOutline, folder: Path, source: Path, defaults: dict[str, Any]
    ) -> None:
        self._engine = engine
        self._folder = folder
        self._source = str(source.absolute())
        self._beside = source.absolute().parent
        self._defaults = defaults
        self._engine_part = engine.identity_part()
        self._stays_inside = cache(partial(is_inside, folder))
        self._unwritable = cache(_unwritable)
        self._known: Mapping[str, JobRecord] = {}

    def check(
        self, rows: Iterable[Row], known: Mapping[str, JobRecord]
    ) -> Iterator[Shot | InvalidRow]:
        """Yield the shot of each row, or the reason why it is invalid.

        Args:
            rows: Rows of the file.
            known: Jobs in the folder's queue, by ID.
        """
        taken = _Taken(self._folder)
        self._known = known
        for row in rows:
            found: Shot | InvalidRow
            try:
                found = self._checked(row, taken)
                self._check_place(found, taken)
                taken.add(found)
            except RefusedInputError as error:
                message = str(error)
                found = InvalidRow(row.line_of(leading_field(message)), message)
            except OSError as error:
                found = InvalidRow(row.line, f"cannot be checked: {cause(error)}")
            yield found

    def _checked(self, row: Row, taken: _Taken) -> Shot:
        values = as_fields(row.values)
        own = {name: values.pop(name) for name in _ROW_FIELDS if name in values}
        if not {"prompt"} <= values.keys() | self._defaults.keys():
            raise RequestError("has no prompt")
        name = _checked_id(own["id"]) if "id" in own else _derived_id(values, taken.ids)
        output = str(own.get("output", f"{name}.mp4"))
        for picture in values.keys() & {*PICTURES}:
            values[picture] = self._beside / os.path.expanduser(str(values[picture]))
        if "lora" in values and self._engine.config.lora_folder is None:
            values["lora"] = self._loras_beside(values["lora"])
        fields = {**merge_fields(self._defaults, values), "output_type": output_type(Path(output))}
        try:
            request = VideoRequest.model_validate(fields)
        except ValidationError as error:
            raise RequestError(one_line(error, _FIELDS)) from error
        resolved = self._engine.resolve(request)
        determinants = {
            "request": request.as_recorded(),
            "image": resolved.image_sha256,
            **({"last_image": last} if (last := resolved.last_image_sha256) else {}),
            **({"lora": loras} if (loras := resolved.lora_sha256) else {}),
            "output": output,
            "engine": self._engine_part,
        }
        shot = Shot(row.line, name, output, resolved, _digest(determinants))
        if self._is_known(shot):  # its name may contain the date or the seed of that time
            output = self._known[name].output
        elif "output" in own:
            output = fill_placeholders(output, self._values_of(shot))
        self._place(output)
        return replace(shot, output=str(PurePosixPath(output)))

    def _loras_beside(self, loras: Any) -> Any:
        """The LoRAs of a row; relative paths are relative to the folder of the shots file."""
        try:
            uses = [parse_lora(each) for each in loras]
        except (TypeError, ValueError):
            return loras  # refused with the other fields
        paths = [self._beside / os.path.expanduser(use.file) for use in uses]
        return [str(replace(use, file=str(at))) for use, at in zip(uses, paths, strict=True)]

    def _values_of(self, shot: Shot) -> dict[str, str]:
        """Values for the placeholders of an output name."""
        request = shot.request
        return placeholder_values(
            seed=request.seed,
            name=shot.id,
            model=self._engine.config.model,
            num_videos=request.num_videos,
        )

    def _is_known(self, shot: Shot) -> bool:
        """Whether the queue has this shot, unchanged."""
        known = self._known.get(shot.id)
        return known is not None and known.fingerprint == shot.fingerprint

    def _place(self, output: str) -> None:
        """Refuse an output path that is invalid or outside the folder."""
        pure = PurePosixPath(output)
        path = self._folder / pure
        if not output or "\0" in output or pure.name in ("", ".."):
            raise RequestError(f"output={output!r} is not a file name")
        if pure.is_absolute() or ".." in pure.parts or not self._stays_inside(path.parent):
            raise RequestError(f"output={output!r} leaves {self._folder}: name a path inside it")
        if any(len(os.fsencode(part)) > _MAX_NAME_BYTES for part in pure.parts):
            raise RequestError(f"output={output[:60]!r}...: {_MAX_NAME_BYTES} bytes a name at most")
        if pure.parts[0] == WORK_FOLDER:
            raise RequestError(f"output={output!r}: {WORK_FOLDER} is reserved")
        check_index(PurePosixPath(output))

    def _check_place(self, shot: Shot, taken: _Taken) -> None:
        """Refuse a shot whose files cannot be written, or would replace a foreign file."""
        path, request = self._folder / shot.output, shot.request
        existing = [each for each in written_paths(path, request.num_videos) if taken.exists(each)]
        for each in existing:
            if each.is_dir() if each.suffix else each.is_file():
                kind = "folder" if each.suffix else "file"
                raise RequestError(f"output={shot.output!r} writes {each}, which is a {kind}")
        if reason := self._unwritable(path.parent):
            raise RequestError(f"output={shot.output!r}: {reason}")
        if not existing or (self._is_known(shot) and self._known[shot.id].state == "done"):
            return  # nothing is replaced
        other = find_foreign_file(path, request.num_videos, shot.id, self._source, self._known.get)
        if other is not None:
            raise RequestError(f"output={shot.output!r}: {other} {FOREIGN_FILE}")


class _Taken:
    """IDs, files and folders of the rows so far, each with its line.

    Args:
        folder: Output folder.

    Attributes:
        ids: Line of each ID.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._names: dict[Path, frozenset[str]] = {}
        self.ids: dict[str, int] = {}
        self._files: dict[str, int] = {}
        self._folders: dict[str, int] = {}

    def add(self, shot: Shot) -> None:
        """Record the ID and the files of a shot.

        Raises:
            RequestError: One belongs to another row or is reserved.
        """
        if shot.id in self.ids:
            raise RequestError(f"id={shot.id!r} is also the id of line {self.ids[shot.id]}")
        path = Path(shot.output)
        names = [str(each) for each in written_paths(path, shot.request.num_videos)]
        folders = _folders_of(path.parent)
        for name in names:
            if reason := self._taken_by(name, folders):
                raise RequestError(f"output={shot.output!r} writes {name}, {reason}")
        self.ids[shot.id] = shot.line
        self._files.update(dict.fromkeys(names, shot.line))
        self._folders.update(dict.fromkeys(folders, shot.line))

    def exists(self, path: Path) -> bool:
        """Whether a path exists. Each folder is listed only once."""
        names = self._names.get(path.parent)
        if names is None:
            names = frozenset()
            with suppress(FileNotFoundError, NotADirectoryError):
                names = frozenset(os.listdir(path.parent))
            self._names[path.parent] = names
        return path.name in names

    def _taken_by(self, name: str, folders: Sequence[str]) -> str:
        if name in REPORTS:
            return "which is reserved: name another"
        if name in self._files:
            return f"as line {self._files[name]}"
        if name in self._folders:
            return f"a folder that line {self._folders[name]} writes to: name another"
        parent = next((folder for folder in folders if folder in self._files), "")
        return f"inside {parent}, which line {self._files[parent]} writes" if parent else ""


@cache
def _folders_of(parent: Path) -> list[str]:
    """A folder and its parents, sorted."""
    return sorted(str(each) for each in (parent, *parent.parents) if each.parts)


def _unwritable(folder: Path) -> str:
    """Why a folder, possibly still to be created, cannot be written to; empty if it can."""
    while not os.path.lexists(folder):
        folder = folder.parent
    if not folder.is_dir():
        return f"{folder} is a file: name a folder"
    return "" if os.access(folder, os.W_OK | os.X_OK) else f"{folder} cannot be written to"


def _checked_id(name: object) -> str:
    text = str(name) if isinstance(name, str | int | float) else ""
    if not text.strip() or text.startswith(".") or "/" in text or not text.isprintable():
        raise RequestError(f"id={name!r} must be valid as a file name")
    if len(text.encode()) > _MAX_NAME_BYTES // 2:
        raise RequestError(f"id={text[:60]!r}...: {_MAX_NAME_BYTES // 2} bytes at most")
    return text


def _derived_id(values: dict[str, Any], ids: dict[str, int]) -> str:
    """An ID for a row without one: words of its prompt and a digest of its values.

    It does not depend on the other rows. Equal rows are numbered.
    """
    name = request_id(values)
    number, counted = 1, name
    while counted in ids:
        number += 1
        counted = f"{name}-{number}"
    return counted


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(_ENCODER.encode(content).encode()).hexdigest()
