"""Defaults of models (size, steps, guidance, options), and presets of models on the Hub."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import Field

from longtake.configs.base import Dtype, StrictModel
from longtake.configs.field_types import (
    MAX_PROMPT,
    DecodeMode,
    Frames,
    Pixels,
    Rate,
    ResizeMode,
    Scale,
    Shift,
    Sigmas,
    Steps,
    TextTokens,
    TileSize,
)
from longtake.configs.yaml_reader import read_yaml, read_yaml_as
from longtake.errors import ModelError, one_line
from longtake.files.reading import MAX_YAML_BYTES, read_regular

DEFAULTS_FILE = "longtake.yaml"
"""Name of the file in a model's folder that holds its defaults."""

Prompt = Annotated[str, Field(min_length=1, max_length=400)]
WeightsKind = Literal["transformer", "text_encoders", "autoencoder"]
ResultT = TypeVar("ResultT")


class ModelDefaults(StrictModel):
    """Defaults of request fields, and other facts about a model: the keys of its longtake.yaml.

    A family has a subclass with its options, its own keys, and the figures of its released models.
    """

    repository: str | None = Field(
        default=None, description="Hub id of the weights, for a preset without weights"
    )
    license: Annotated[str, Field(max_length=100)] = Field(
        default="", description="License of the weights, as the Hub names it"
    )
    file_dtypes: dict[WeightsKind, Dtype] = Field(
        default={},
        description="Dtypes of the published files of `transformer`, `text_encoders` and "
        "`autoencoder`, which give their sizes; half precision by default",
    )
    height: Pixels
    width: Pixels
    num_frames: Frames
    num_inference_steps: Steps
    sigmas: Sigmas | None = None
    guidance_scale: Scale = 1.0
    negative_prompt: Annotated[str, Field(max_length=MAX_PROMPT)] | None = None
    flow_shift: Shift | None = Field(
        default=None, description="Flow shift; that of the model's scheduler by default"
    )
    resize_mode: ResizeMode = "crop"
    sizes: dict[str, Annotated[tuple[tuple[Pixels, Pixels], ...], Field(min_length=1)]] = Field(
        default={}, description="Heights and widths for a picture, by resolution"
    )
    fps: Rate
    decode: DecodeMode = "tiled"
    decode_tile_size: TileSize | None = None
    decode_tile_stride: TileSize | None = None
    vae_dtype: Dtype | None = Field(
        default=None, description="Dtype of the VAE; that of the engine by default"
    )
    max_sequence_length: TextTokens
    examples: Annotated[tuple[Prompt, ...], Field(max_length=8)] = Field(
        default=(), description="Example prompts on the page"
    )
    note: Annotated[str, Field(max_length=400)] = Field(
        default="", description="Notice about the model on the page"
    )


DefaultsT = TypeVar("DefaultsT", bound=ModelDefaults)


def configuration_folders() -> dict[str, Path]:
    """Folders of the configuration files of bundled models and of presets, by name."""
    indexes = sorted(Path(__file__).parent.glob("*/model_index.json"))
    return {index.parent.name: index.parent for index in indexes}


def bundled() -> dict[str, Path]:
    """Folders of the bundled models, in diffusers format, by name."""
    return {
        name: folder
        for name, folder in configuration_folders().items()
        if any(folder.glob("vae/*.saf*"))
    }


def presets() -> list[str]:
    """Names of the presets of models whose weights are on the Hub."""
    return [name for name in configuration_folders() if name not in bundled()]


def preset_of(model: str) -> tuple[Path, str] | None:
    """Look up the preset of a model whose weights are on the Hub.

    Args:
        model: The preset's name or its hub id.

    Returns:
        The folder of its configuration files, and the hub id; None if there is no such preset.
    """
    for name, folder in configuration_folders().items():
        values = _read_file(folder / DEFAULTS_FILE, read_yaml)
        repository = values.get("repository") if isinstance(values, dict) else None
        if repository is not None and model in (name, repository):
            return folder, repository
    return None


def defaults_of(model: str, folder: Path, fallback: DefaultsT) -> DefaultsT:
    """The defaults of a model: from its folder, else from its preset, else those of its family.

    Args:
        model: The model as the user named it; a hub id may have a preset.
        folder: Folder of the model's files.
        fallback: The family's defaults, for keys that the file leaves out.

    Raises:
        ModelError: The file in the folder is invalid.
    """
    own, preset = folder / DEFAULTS_FILE, preset_of(model)
    if not os.path.lexists(own):
        if preset is None:
            return fallback
        own = preset[0] / DEFAULTS_FILE
    return _read_file(own, partial(read_yaml_as, type(fallback), fallback=dict(fallback)))


def _read_file(path: Path, parse: Callable[[bytes], ResultT]) -> ResultT:
    try:
        return parse(read_regular(path, MAX_YAML_BYTES))
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ModelError(f"{path} is not a file of model defaults: {one_line(error)}") from error
