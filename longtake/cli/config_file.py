"""The file of ``--config``: options in YAML, or the .json of a video to render again."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from longtake.cli.options import COMMANDS, FILE_ONLY
from longtake.configs import yaml_reader
from longtake.configs.engine import PARTS
from longtake.configs.fields import sizes
from longtake.configs.fields.weights import place_of_shard_weights
from longtake.configs.request import PICTURES, MergedOptions
from longtake.errors import RefusedInputError, RequestError, did_you_mean, leading_field
from longtake.files.reading import read_regular

_MAX_FILE_BYTES = 16 * 2**20
_DEGREES = ("ulysses_degree", "ring_degree", "cfg_degree")
_REPLACED = {
    **dict.fromkeys(("devices", "guidance_scale", *_DEGREES), _DEGREES),
    "model": ("revision", *PARTS),
    **{name: (f"{name}_sha256",) for name in (*PICTURES, "lora")},
    **MergedOptions.discards,
    "decode": ("decode_tile_size", "decode_tile_stride"),
    "decode_tile_size": ("decode_tile_stride",),
}
"""By flag: the settings of a video's .json that the flag discards, since they may not fit it."""


class ConfigFile:
    """The options that a file sets.

    Args:
        name: Path of the file; None for no options.

    Raises:
        RequestError: The file cannot be read or parsed, or sets an unknown option.
    """

    def __init__(self, name: str | None) -> None:
        self._name = name
        self._lines: dict[str, int] = {}
        self._is_metadata = False
        self._values: dict[str, Any] = {} if name is None else self._read(Path(name).expanduser())

    def merge(self, given: dict[str, Any]) -> dict[str, Any]:
        """The values of the file, overridden by flags."""
        values = self._values
        for one, other in (("sigmas", "num_inference_steps"), ("num_inference_steps", "sigmas")):
            if one in given and other not in given:
                values = {name: value for name, value in values.items() if name != other}
        merged = (
            override_settings(values, given)
            if self._is_metadata
            else sizes.merge_fields(values, given)
        )
        self._lines = {
            name: line for name, line in self._lines.items() if name in merged and name not in given
        }
        return merged

    @contextmanager
    def naming_lines(self) -> Iterator[None]:
        """Add the file and the line to errors about values of the file."""
        try:
            yield
        except RefusedInputError as error:
            field = leading_field(str(error))
            names = (field, *sizes.SHORTHANDS_OF.get(field, ()))
            line = next((self._lines[name] for name in names if name in self._lines), None)
            if line is None:
                raise
            raise type(error)(f"config={self._name!r} line {line}: {error}") from error

    def _read(self, path: Path) -> dict[str, Any]:
        content = self._content(path)
        self._is_metadata = all(isinstance(content.get(part), dict) for part in _PARTS)
        if self._is_metadata:
            content = _metadata_options(content)
        values = {str(name).replace("-", "_"): value for name, value in content.items()}
        self._read_shard_weights(values)
        if isinstance(content, yaml_reader.Mapping):
            self._lines = {name.replace("-", "_"): content.line_of(name) for name in content}
        known = (*COMMANDS["generate"].fields, *FILE_ONLY, "output")
        for name in values:
            if name not in known:
                at = f" line {self._lines[name]}" if name in self._lines else ""
                meant = did_you_mean(name, known) or ": see longtake generate --help"
                raise RequestError(
                    f"config={self._name!r}{at}: {name[:60]} is not an option{meant}"
                )
        return {name: value for name, value in values.items() if value is not None}

    def _read_shard_weights(self, values: dict[str, Any]) -> None:
        """Read the option of 0.1.0 as what replaces it."""
        if "shard_weights" not in values:
            return
        try:
            place = place_of_shard_weights(values.pop("shard_weights"))
        except ValueError as error:
            raise RequestError(f"config={self._name!r}: {error}") from error
        values.setdefault("weights", place)

    def _content(self, path: Path) -> Mapping[str, Any]:
        try:
            data = read_regular(path, _MAX_FILE_BYTES)
        except OSError as error:
            raise RequestError(f"config={self._name!r} cannot be read: {error.strerror}") from error
        try:
            content = _parse_json(data)
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
"""Parts of a video's .json that hold options."""


def _parse_json(data: bytes) -> dict[str, Any] | None:
    """The object in a JSON file, or None: the YAML parser rejects some valid JSON."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("duplicate key")
        return found

    if not data.lstrip().startswith(b"{"):
        return None
    try:
        found = json.loads(data, object_pairs_hook=unique)
    except (ValueError, RecursionError):
        return None  # the YAML parser then reports the error
    return found if isinstance(found, dict) else None


def _metadata_options(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The options in a video's metadata."""
    content = {name: value for part in _PARTS for name, value in metadata[part].items()}
    parallel = content.pop("parallel", None)
    content.update(parallel if isinstance(parallel, dict) else {})
    # set by the command; and places of weights depend on the machine, not on the video
    for name in ("output_type", "autoencoder_only", "weights", "text_weights", "shard_weights"):
        content.pop(name, None)
    return content


def override_settings(values: Mapping[str, Any], flags: Mapping[str, Any]) -> dict[str, Any]:
    """A video's own settings, overridden by flags and without those that a flag invalidates."""
    replaced = {name for flag in flags for name in _REPLACED.get(flag, ())}
    return sizes.merge_fields({n: value for n, value in values.items() if n not in replaced}, flags)
