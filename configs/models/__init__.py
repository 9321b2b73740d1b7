"""Defaults of models (size, steps, guidance, prompt template), and presets of models on the Hub."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from pydantic import Field

from longtake.configs.base import Dtype, StrictModel
from longtake.configs.request import (
    DecodeMode,
    Frames,
    I2vMode,
    Pixels,
    PromptTemplate,
    Rate,
    ResizeMode,
    Scale,
    Shift,
    Steps,
    TextTokens,
)
from longtake.configs.yaml_reader import read_yaml_as
from longtake.errors import ModelError, one_line
from longtake.files.reading import MAX_YAML_BYTES, read_regular

DEFAULTS_FILE = "longtake.yaml"
"""Name of the file in a model's folder that holds its defaults."""

Prompt = Annotated[str, Field(min_length=1, max_length=400)]


class ModelDefaults(StrictModel):
    """Defaults of request fields. Unless a model has its own, HunyuanVideo's, as in diffusers."""

    repository: str | None = Field(
        default=None, description="Hub id of the weights, for a preset without weights"
    )
    height: Pixels = 720
    width: Pixels = 1280
    num_frames: Frames = 129
    num_inference_steps: Steps = 50
    guidance_scale: Scale = 6.0
    flow_shift: Shift | None = Field(
        default=None, description="Flow shift; that of the model's scheduler by default"
    )
    dynamic_flow_shift: Shift = Field(
        default=17.0, description="Flow shift of the dynamic mode of image-to-video"
    )
    i2v_mode: I2vMode = "stable"
    resize_mode: ResizeMode = "crop"
    sizes: dict[str, Annotated[tuple[tuple[Pixels, Pixels], ...], Field(min_length=1)]] = Field(
        default={}, description="Heights and widths for a picture, by resolution"
    )
    fps: Rate = 24.0
    decode: DecodeMode = "tiled"
    vae_dtype: Dtype | None = Field(
        default=None, description="Dtype of the VAE; that of the engine by default"
    )
    prompt_template: PromptTemplate | None = Field(
        default=None, description="Text around the prompt; that of diffusers by default"
    )
    max_sequence_length: TextTokens = 256
    examples: Annotated[tuple[Prompt, ...], Field(max_length=8)] = Field(
        default=(), description="Example prompts on the page"
    )
    note: Annotated[str, Field(max_length=400)] = Field(
        default="", description="Notice about the model on the page"
    )


def bundled() -> dict[str, Path]:
    """Folders of the bundled models, in diffusers format, by name."""
    return {name: folder for name, folder in _folders().items() if any(folder.glob("vae/*.saf*"))}


def presets() -> list[str]:
    """Names of the presets of models whose weights are on the Hub."""
    return [name for name in _folders() if name not in bundled()]


def preset_of(model: str) -> tuple[Path, str] | None:
    """Look up the preset of a model whose weights are on the Hub.

    Args:
        model: The preset's name or its hub id.

    Returns:
        The folder of its configuration files, and the hub id; None if there is no such preset.
    """
    for name, folder in _folders().items():
        repository = _read(folder / DEFAULTS_FILE).repository
        if repository is not None and model in (name, repository):
            return folder, repository
    return None


def defaults_of(model: str, folder: Path) -> ModelDefaults:
    """The defaults of a model: from its folder, else from its preset, else those of diffusers.

    Args:
        model: The model as the user named it; a hub id may have a preset.
        folder: Folder of the model's files.

    Raises:
        ModelError: The file in the folder is invalid.
    """
    own, preset = folder / DEFAULTS_FILE, preset_of(model)
    if not os.path.lexists(own):
        if preset is None:
            return ModelDefaults()
        own = preset[0] / DEFAULTS_FILE
    return _read(own)


def _folders() -> dict[str, Path]:
    indexes = sorted(Path(__file__).parent.glob("*/model_index.json"))
    return {index.parent.name: index.parent for index in indexes}


def _read(path: Path) -> ModelDefaults:
    try:
        return read_yaml_as(ModelDefaults, read_regular(path, MAX_YAML_BYTES))
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ModelError(f"{path} is not a file of model defaults: {one_line(error)}") from error
