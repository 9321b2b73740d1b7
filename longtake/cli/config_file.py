"""The file that --config names: options in YAML, or the .json of a video that is rendered again."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from longtake.cli.options import COMMANDS, FILE_ONLY
from longtake.configs import sizes, yaml_reader
from longtake.errors import RefusedInputError, RequestError, field_named, nearly
from longtake.files.reading import open_regular

MAX_FILE_BYTES = 16 * 2**20
_DEGREES = ("ulysses_degree", "ring_degree", "cfg_degree")
_REPLACED = {
    **dict.fromkeys(("devices", "true_cfg_scale", *_DEGREES), _DEGREES),
    "model": ("revision",),
    "image": ("image_sha256",),
    "i2v_mode": ("flow_shift",),
    "decode": ("decode_tile_size", "decode_tile_stride"),
    "decode_tile_size": ("decode_tile_stride",),
}
"""What of a video's own settings no longer holds once a flag is given: they need not fit it."""


class ConfigFile:
    """Options by name, as a file has them.

    Args:
        name: of the file; none, and so no options, where it is None.

    Raises:
        RequestError: it cannot be read, is no YAML, or has what is no option.
    """

    def __init__(self, name: str | None) -> None:
        self._name = name
        self._lines: dict[str, int] = {}
        self._of_a_video = False
        self._values: dict[str, Any] = {} if name is None else self._read(Path(name).expanduser())

    def under(self, given: dict[str, Any]) -> dict[str, Any]:
        """Its values, and over them those of the flags."""
        values = self._values
        for one, other in (("sigmas", "num_inference_steps"), ("num_inference_steps", "sigmas")):
            if one in given and other not in given:
                values = {name: value for name, value in values.items() if name != other}
        merged = over(values, given) if self._of_a_video else sizes.over(values, given)
        self._lines = {
            name: line for name, line in self._lines.items() if name in merged and name not in given
        }
        return merged

    @contextmanager
    def naming_lines(self) -> Iterator[None]:
        """Have what is refused of its values say where they stand."""
        try:
            yield
        except RefusedInputError as error:
            field = field_named(str(error))
            names = (field, *sizes.SAID_BY.get(field, ()))
            line = next((self._lines[name] for name in names if name in self._lines), None)
            if line is None:
                raise
            raise type(error)(f"config={self._name!r} line {line}: {error}") from error

    def _read(self, path: Path) -> dict[str, Any]:
        content = self._content(path)
        self._of_a_video = all(isinstance(content.get(part), dict) for part in _PARTS)
        if self._of_a_video:
            content = _settings_of(content)
        values = {str(name).replace("-", "_"): value for name, value in content.items()}
        if isinstance(content, yaml_reader.Mapping):
            self._lines = {name.replace("-", "_"): content.line_of(name) for name in content}
        known = (*COMMANDS["generate"].fields, *FILE_ONLY, "output")
        for name in values:
            if name not in known:
                at = f" line {self._lines[name]}" if name in self._lines else ""
                meant = nearly(name, known) or ": see longtake generate --help"
                raise RequestError(
                    f"config={self._name!r}{at}: {name[:60]} is not an option{meant}"
                )
        return {name: value for name, value in values.items() if value is not None}

    def _content(self, path: Path) -> Mapping[str, Any]:
        try:
            with open_regular(path) as file:
                data = file.read(MAX_FILE_BYTES + 1)
        except OSError as error:
            raise RequestError(f"config={self._name!r} cannot be read: {error.strerror}") from error
        if len(data) > MAX_FILE_BYTES:
            raise RequestError(
                f"config={self._name!r} is larger than {MAX_FILE_BYTES >> 20} MiB: name a file of "
                "options"
            )
        try:
            content = _json_of(data)
            if content is None:
                content = yaml_reader.read_yaml(data)
        except yaml_reader.YamlError as error:
            raise RequestError(f"config={self._name!r} {error}") from error
        if content is None:
            return {}
        if not isinstance(content, dict):
            raise RequestError(
                f"config={self._name!r} must map options to values, e.g. height: 720"
            )
        return content


_PARTS = ("request", "engine")


def _json_of(data: bytes) -> dict[str, Any] | None:
    """A video's .json: YAML's parser does not take all that JSON may hold. None if it is none."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("a name stands there twice")
        return found

    if not data.lstrip().startswith(b"{"):
        return None
    try:
        found = json.loads(data, object_pairs_hook=once)
    except (ValueError, RecursionError):
        return None  # read as YAML then, which says what is wrong with it
    return found if isinstance(found, dict) else None


def _settings_of(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Options by name, of a video's metadata."""
    content = {name: value for part in _PARTS for name, value in metadata[part].items()}
    parallel = content.pop("parallel", None)
    content.update(parallel if isinstance(parallel, dict) else {})
    for name in ("output_type", "autoencoder_only"):  # follow from the command
        content.pop(name, None)
    return content


def over(values: Mapping[str, Any], flags: Mapping[str, Any]) -> dict[str, Any]:
    """A video's own settings, and over them flags, with which some no longer hold."""
    replaced = {name for flag in flags for name in _REPLACED.get(flag, ())}
    return sizes.over({n: value for n, value in values.items() if n not in replaced}, flags)
