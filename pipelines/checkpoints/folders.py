"""Finds the model that a file of weights, or a publisher's own folder, is of; without torch.

Such files hold components alone. The rest of a model, its configuration, tokenizers and schedulers,
is that of the preset whose transformer is of the same configuration.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longtake.configs.families import family_of, installed_families, load_reference
from longtake.configs.models import configuration_folders
from longtake.errors import ModelError
from longtake.pipelines.checkpoints.part_files import files_of, holds_weights, shown
from longtake.pipelines.checkpoints.recognition import EXPERTS, candidates, recognize
from longtake.pipelines.loading import model_files
from longtake.pipelines.loading.model_files import read_header
from longtake.pipelines.loading.tensor_files import Tensor

_INDEX = "model_index.json"


@dataclass(frozen=True)
class FoundModel:
    """A model of which a file or a folder holds components.

    Attributes:
        preset: Name of the bundled model or preset that the rest comes from.
        parts: The files and folders, by component.
    """

    preset: str
    parts: Mapping[str, Path]


def find_model(path: Path) -> FoundModel | None:
    """The model that a file or a publisher's folder is of; None for any other path.

    Raises:
        ModelError: A file cannot be read, or is of no model that is known, or of several.
    """
    if os.path.isfile(path):
        return _matched(path, _components(path), whole=False)
    if not os.path.isdir(path) or os.path.exists(path / _INDEX):
        return None
    for family in installed_families().values():
        for kind in load_reference(family.folders) if family.folders else ():
            if parts := kind.find(path):
                return _matched(path, parts, whole=True)
    if holds_weights(path):
        return _matched(path, _components(path), whole=False)
    return None


def _components(path: Path) -> dict[str, Path]:
    """The components that a file or a folder of shards holds, each to be read from it."""
    tensors = _tensors(path)
    found = {each.layout.component: path for each in candidates(tensors)}
    if "transformer" not in found:
        try:
            recognize(tensors, "transformer")  # says what it is
        except ModelError as error:
            raise ModelError(f"{shown(path)} {error}") from error
    return found


def _matched(path: Path, parts: dict[str, Path], *, whole: bool) -> FoundModel:
    """The preset whose transformer is that of the parts.

    Args:
        path: What the user named.
        parts: The files of components.
        whole: Whether a model with two experts would have both in these files.
    """
    names = _presets_like(parts["transformer"])
    experts = {name for name in EXPERTS if name in parts}
    fitting = {name: own for name, own in names.items() if not whole or own == experts}
    named = [name for name in fitting if name == path.stem.lower() or name == path.name.lower()]
    if len(named or fitting) != 1:
        raise ModelError(_ambiguous(path, fitting) if fitting else _no_preset(path))
    (preset,) = named or fitting
    if fitting[preset] != experts:
        raise ModelError(
            f"{shown(path)} is one of the two experts of {preset}: name both, with --model "
            f"{preset} --transformer FILE --transformer-2 FILE"
        )
    return FoundModel(preset, parts)


def _presets_like(file: Path) -> dict[str, set[str]]:
    """Presets with a transformer like that of a file: the names of their transformers, by name."""
    tensors = _tensors(file)
    try:
        found = recognize(tensors, "transformer")
        told = _plain(found.layout.config(found.own(tensors)))
    except ModelError as error:
        raise ModelError(f"{shown(file)} {error}") from error
    like = {}
    for name, folder in configuration_folders().items():
        index = model_files.read_object(folder / _INDEX)
        family = family_of(str(index.get("_class_name")))
        if family is None or family.name != found.family.name:
            continue
        config = model_files.read_object(folder / "transformer" / "config.json")
        if all(config.get(key, value) == value for key, value in told.items()):
            like[name] = {expert for expert in EXPERTS if None not in index.get(expert, [None])}
    return like


def _tensors(path: Path) -> dict[str, Tensor]:
    return model_files.merge_tensors(map(read_header, files_of(path)))


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration as JSON holds it: tuples are lists."""
    plain: dict[str, Any] = json.loads(json.dumps(config))
    return plain


def _ambiguous(path: Path, fitting: Mapping[str, set[str]]) -> str:
    ways = [
        f"--model {name} --transformer FILE{' --transformer-2 FILE' if len(own) > 1 else ''}"
        for name, own in fitting.items()
    ]
    return (
        f"{shown(path)} fits several models, which its tensors do not tell apart: {', '.join(ways)}"
    )


def _no_preset(path: Path) -> str:
    return (
        f"{shown(path)} holds a transformer that no preset has: name the model that has its other "
        "components, with --model FOLDER --transformer FILE"
    )
