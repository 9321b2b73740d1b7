"""What the flags of a command and a config file say together, checked where it is declared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from longtake.configs.engine import EngineConfig
from longtake.configs.parallel import ParallelConfig
from longtake.errors import RequestError, one_line
from longtake.options import FIELDS, FILE_ONLY

_COMMAND_LINE_ONLY = ("config", "output", "metadata", "quiet", "json", "latents")
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


def flags(options: dict[str, Any]) -> dict[str, Any]:
    """The options that were given and that a config file could hold."""
    return {
        name: value
        for name, value in options.items()
        if value is not None and name not in _COMMAND_LINE_ONLY
    }


def values_of(options: dict[str, Any]) -> dict[str, Any]:
    """The config file's values, and over them the flags'."""
    given = flags(options)
    if options["output"] is not None:
        given["output"] = options["output"]
    if options["config"] is None:
        return given
    values, of_a_video = _read_config(Path(options["config"]))
    for one, other in (("sigmas", "num_inference_steps"), ("num_inference_steps", "sigmas")):
        if one in given and other not in given:
            values.pop(other, None)
    return over(values, given) if of_a_video else {**values, **given}


def over(values: dict[str, Any], flags: dict[str, Any]) -> dict[str, Any]:
    """A video's own settings, and over them flags, with which some no longer hold."""
    replaced = {name for flag in flags for name in _REPLACED.get(flag, ())}
    return {**{n: value for n, value in values.items() if n not in replaced}, **flags}


def _read_config(path: Path) -> tuple[dict[str, Any], bool]:
    """A YAML file of options by name; or the metadata of a video, to render it again.

    Returns:
        The options, and whether it is a video's metadata.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise RequestError(f"config={str(path)!r} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RequestError(f"config={str(path)!r} is no YAML: {one_line(error)}") from error
    if not isinstance(content, dict):
        raise RequestError(f"config={str(path)!r} must map options to values, e.g. height: 720")
    parts = (content.get("request"), content.get("engine"))
    of_a_video = all(isinstance(part, dict) for part in parts)
    if of_a_video:
        content = {name: value for part in parts for name, value in dict(part or {}).items()}
        parallel = content.pop("parallel", None)
        content.update(parallel if isinstance(parallel, dict) else {})
        for name in ("output_type", "autoencoder_only"):  # follow from the command
            content.pop(name, None)
    values = {str(name).replace("-", "_"): value for name, value in content.items()}
    known = {*FIELDS["generate"], *FILE_ONLY, "output"}
    for name in values:
        if name not in known:
            raise RequestError(
                f"config={str(path)!r} has {name}, which is not an option: see "
                "longtake generate --help"
            )
    return {name: value for name, value in values.items() if value is not None}, of_a_video


def engine_config(values: dict[str, Any]) -> EngineConfig:
    """The engine that options ask for."""
    degrees = {n: values.pop(n) for n in list(values) if n in ParallelConfig.model_fields}
    config: EngineConfig = validated(
        EngineConfig, {**values, "parallel": validated(ParallelConfig, degrees)}
    )
    return config


def validated(kind: type[Any], values: dict[str, Any]) -> Any:
    """An object of a declared class; a RequestError says what does not fit."""
    try:
        return kind(**values)
    except ValidationError as error:
        raise RequestError(one_line(error)) from error
