"""Where an output goes, and the placeholders in its name: ``-o {model}-{seed}.mp4``."""

from __future__ import annotations

import hashlib
import json
import os
import re
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path, PurePath
from typing import Any, TypeVar

from longtake.configs.field_types import OutputType
from longtake.engine.media.output_files import check_output, free_output, output_type
from longtake.engine.media.paths import INDEX, OutputTarget
from longtake.errors import RequestError

DEFAULT_OUTPUT = "out.mp4"
PLACEHOLDERS = ("seed", "id", "date", "model", "index")
_MAX_ID_WORDS_CHARS = 40
PathT = TypeVar("PathT", bound=PurePath)


@dataclass(frozen=True)
class OutputSpec:
    """Where the videos of one request are written.

    Attributes:
        template: Path whose name may have placeholders; None: ``out.mp4``, or the first of
            ``out-2.mp4``, ``out-3.mp4``, ... that is free.
        request_id: Value of the placeholder ``{id}``.
        metadata: Whether a .json is written next to the videos.
        overwrite: Whether earlier videos and their .json are replaced.
    """

    template: str | None = None
    request_id: str = ""
    metadata: bool = True
    overwrite: bool = False

    @property
    def output_type(self) -> OutputType:
        """The type that the suffix selects: frames, or only latents."""
        return output_type(Path(self.template or DEFAULT_OUTPUT))

    def values(self, seed: int | None, model: str, num_videos: int) -> dict[str, str]:
        """The values of all placeholders; see :func:`placeholder_values`."""
        return placeholder_values(
            seed=seed, name=self.request_id, model=model, num_videos=num_videos
        )

    def place(self, values: Mapping[str, str], num_videos: int) -> Path:
        """The path, after a check that all files can be written there.

        Raises:
            RequestError: The path already exists, or it cannot be written to.
        """
        if self.template is None:
            path = free_output(Path(DEFAULT_OUTPUT), num_videos, metadata=self.metadata)
        else:
            path = check_index(Path(fill_placeholders(self.template, values)))
        self.check(path, num_videos)
        return path

    def check(self, path: Path, num_videos: int) -> None:
        """Check that all files can be written at a path; see :func:`check_output`."""
        check_output(self.target(path), num_videos)

    def target(self, path: Path) -> OutputTarget:
        """Where the files of this output go, at one of its paths."""
        return OutputTarget(path, metadata=self.metadata, overwrite=self.overwrite)


def fill_placeholders(template: str, values: Mapping[str, str]) -> str:
    """Replace the placeholders in a name; ``{{`` and ``}}`` stand for braces.

    Args:
        template: The name.
        values: Values by placeholder.

    Raises:
        RequestError: A placeholder is unknown or has no value, or a brace is unmatched.
    """

    def value_of(name: str) -> str:
        if name not in values:
            raise RequestError(f"output={template!r}: {{{name}}} is not known here: leave it out")
        return values[name]

    return _replaced(template, value_of)


def check_placeholders(template: str) -> None:
    """Check the placeholders in a name.

    Raises:
        RequestError: A placeholder is unknown, or a brace is unmatched.
    """
    _replaced(template, lambda name: "")


def pattern_of(template: str, values: Mapping[str, str]) -> str:
    """A regular expression for the names that a template gives; placeholders without a value match
    anything."""
    text = _replaced(template, lambda name: values.get(name, "\0"))
    return ".*".join(map(re.escape, text.split("\0")))


def _replaced(template: str, value_of: Callable[[str], str]) -> str:
    known = ", ".join(f"{{{name}}}" for name in PLACEHOLDERS)
    text = ""
    try:
        for literal, name, spec, conversion in string.Formatter().parse(template):
            text += literal
            if name is None:
                continue
            if name not in PLACEHOLDERS or spec or conversion:
                field = (
                    name + (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "")
                )
                raise RequestError(
                    f"output={template!r} has {{{field}}}: use {known}, or {{{{ and }}}} for braces"
                )
            text += value_of(name)
    except ValueError as error:
        if isinstance(error, RequestError):
            raise
        raise RequestError(
            f"output={template!r} has a brace without its other: use {known}, or {{{{ and }}}} for "
            "braces"
        ) from error
    return text


def placeholder_values(
    *, seed: int | None, name: str, model: str, num_videos: int
) -> dict[str, str]:
    """Values of the placeholders, each valid in a file name.

    Args:
        seed: The seed; None: ``{seed}`` has no value.
        name: The request's id.
        model: A model's folder or hub id.
        num_videos: Number of videos. The index of a single one is 0; with several, ``{index}``
            stays for :func:`output_paths`.
    """
    values = {
        "id": name,
        "date": date.today().isoformat(),
        "model": _model_name(model),
        "index": "0" if num_videos == 1 else INDEX,
    }
    return values if seed is None else {"seed": str(seed), **values}


def _model_name(model: str) -> str:
    """The last component of a model's folder or hub id, valid in a file name."""
    last = os.path.basename(os.path.abspath(os.path.expanduser(model)))
    return re.sub(r"[^\w.-]+", "-", last).strip("-.")[:100] or "model"


def request_id(values: Mapping[str, Any]) -> str:
    """An id of a request: some words of its prompt, and a digest of all its fields."""
    words = re.sub(r"[^a-z0-9]+", "-", str(values.get("prompt", "")).lower()).strip("-")
    content = json.dumps({name: str(value) for name, value in values.items()}, sort_keys=True)
    digest = hashlib.sha256(content.encode()).hexdigest()[:8]
    return f"{words[:_MAX_ID_WORDS_CHARS].strip('-')}-{digest}".strip("-")


def check_index(path: PathT) -> PathT:
    """Return a path whose ``{index}``, if any, is in the file's name.

    Raises:
        RequestError: It is in a folder's name.
    """
    if INDEX in str(path.parent):
        raise RequestError(
            f"output={str(path)!r}: the videos of one request are in one folder: put {INDEX} into "
            "the file's name"
        )
    return path
