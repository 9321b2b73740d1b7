"""The defaults of a model: its size, steps, guidance and prompt template."""

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
from longtake.configs.yaml_reader import declared_in
from longtake.errors import ModelError, one_line
from longtake.files.reading import MAX_YAML_BYTES, read_regular

DEFAULTS_FILE = "longtake.yaml"
"""A file of this name in a model's folder holds its own defaults."""

Prompt = Annotated[str, Field(min_length=1, max_length=400)]


class ModelDefaults(StrictModel):
    """What a request leaves out. Unless a model says otherwise: HunyuanVideo's, as in diffusers."""

    repository: str | None = Field(
        default=None, description="Hub id that has the weights, of a preset that comes without"
    )
    height: Pixels = 720
    width: Pixels = 1280
    num_frames: Frames = 129
    num_inference_steps: Steps = 50
    guidance_scale: Scale = 6.0
    flow_shift: Shift | None = Field(default=None, description="None: its own scheduler's")
    dynamic_flow_shift: Shift = Field(default=17.0, description="Of image-to-video's dynamic mode")
    i2v_mode: I2vMode = "stable"
    resize_mode: ResizeMode = "crop"
    sizes: dict[str, Annotated[tuple[tuple[Pixels, Pixels], ...], Field(min_length=1)]] = Field(
        default={}, description="Its own heights and widths, by resolution; for a picture"
    )
    fps: Rate = 24.0
    decode: DecodeMode = "tiled"
    vae_dtype: Dtype | None = Field(default=None, description="None: that of the engine")
    prompt_template: PromptTemplate | None = Field(default=None, description="None: diffusers'")
    max_sequence_length: TextTokens = 256
    examples: Annotated[tuple[Prompt, ...], Field(max_length=8)] = Field(
        default=(), description="Prompts that the page offers"
    )
    note: Annotated[str, Field(max_length=400)] = Field(
        default="", description="What a user should know of the model before all; on the page"
    )


def bundled() -> dict[str, Path]:
    """The models that come with the package: their folders, in diffusers layout, by name."""
    return {name: folder for name, folder in _folders().items() if any(folder.glob("vae/*.saf*"))}


def presets() -> list[str]:
    """The names of the presets of models whose weights are elsewhere."""
    return [name for name in _folders() if name not in bundled()]


def preset_of(model: str) -> tuple[Path, str] | None:
    """The preset of a model whose weights are elsewhere.

    Args:
        model: the preset's name, or the hub id that it stands for.

    Returns:
        A folder of its configuration files, and the hub id; None if there is no such preset.
    """
    for name, folder in _folders().items():
        repository = _read(folder / DEFAULTS_FILE).repository
        if repository is not None and model in (name, repository):
            return folder, repository
    return None


def defaults_of(model: str, folder: Path) -> ModelDefaults:
    """The defaults of a model: those in its folder, else those of its preset here, else diffusers'.

    Args:
        model: as the user named it; a hub id may have a preset.
        folder: where its files are.

    Raises:
        ModelError: the folder's own file is not what it should be.
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
        return declared_in(ModelDefaults, read_regular(path, MAX_YAML_BYTES))
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ModelError(f"{path} holds no defaults of a model: {one_line(error)}") from error
