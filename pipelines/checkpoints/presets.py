"""Finds the model that a file of weights, or a publisher's own folder, is of; without torch.

Such files hold components alone. The rest of a model, its configuration, tokenizers and schedulers,
is that of the preset whose transformer is of the same configuration.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from longtake.configs.families import family_of, installed_families, load_reference
from longtake.configs.models import configuration_folders
from longtake.errors import ModelError
from longtake.pipelines.checkpoints.folders import PublisherFolder
from longtake.pipelines.checkpoints.formats.headers import read_headers
from longtake.pipelines.checkpoints.part_files import files_of, holds_weights, shown
from longtake.pipelines.checkpoints.recognition import EXPERTS, Recognized, candidates, recognize
from longtake.pipelines.loading.files import model_files
from longtake.pipelines.loading.files.tensor_files import Tensor

Tensors = Mapping[str, Tensor]

_INDEX = "model_index.json"
_SETTINGS = ("scheduler_config.json", "preprocessor_config.json")
"""Files of components that have neither weights nor a vocabulary."""


@dataclass(frozen=True)
class FoundModel:
    """A model of which a file or a folder holds components.

    Attributes:
        preset: Name of the bundled model or preset that the rest comes from.
        parts: The files and folders of components with weights, by component.
        folders: The folders of components without weights.
        whole: Whether the rest is in the preset's configuration files.
    """

    preset: str
    parts: Mapping[str, Path]
    folders: Mapping[str, Path] = field(default_factory=dict)
    whole: bool = False


def find_model(path: Path) -> FoundModel | None:
    """The model that a file or a publisher's folder is of; None for any other path.

    Raises:
        ModelError: A file cannot be read, or is of no model that is known, or of several.
    """
    if os.path.isfile(path):
        return _of_file(path)
    if not os.path.isdir(path) or os.path.exists(path / _INDEX):
        return None
    if kind := publisher_of(path):
        parts, folders = kind.find(path), kind.find_folders(path)
        stored = {name: read_headers(*files_of(part)).tensors for name, part in parts.items()}
        return _found(path, parts, _preset(path, stored, published=True), folders)
    return _of_file(path) if holds_weights(path) else None


def publisher_of(folder: Path) -> PublisherFolder | None:
    """The arrangement of a publisher's folder; None for any other folder.

    Raises:
        ModelError: It holds several models.
    """
    kinds = [kind for kind in _publishers() if kind.find(folder)]
    if len(kinds) > 1:
        raise ModelError(
            f"{shown(folder)} holds several models ({', '.join(kind.name for kind in kinds)}): "
            "name the folder of one, or its transformer with --transformer"
        )
    return kinds[0] if kinds else None


def presets_of(stored: Mapping[str, Tensors]) -> dict[str, set[str]]:
    """Bundled models and presets that components fit: the names of their transformers, by name.

    A transformer is of the same configuration, as far as shapes tell, and every other component
    can be of the same class.

    Args:
        stored: Tensors in the files of each component.

    Raises:
        ModelError: The transformer is not recognized.
    """
    found = recognize(stored["transformer"], "transformer")
    told = _plain(found.layout.config(found.own(stored["transformer"])))
    fitting = {}
    for name, folder in configuration_folders().items():
        classes = _classes(folder)
        held = {each: classes[each] for each in stored if each in classes}
        family = family_of(_pipeline_class(folder))
        if family is None or family.name != found.family.name:
            continue
        config = model_files.read_object(folder / "transformer" / "config.json")
        if any(config.get(key) != value for key, value in told.items()):
            continue
        if all(_can_be(class_name, stored[each], each) for each, class_name in held.items()):
            fitting[name] = {*EXPERTS} & classes.keys()
    return fitting


def _publishers() -> Iterator[PublisherFolder]:
    for family in installed_families().values():
        yield from load_reference(family.folders) if family.folders else ()


def _of_file(path: Path) -> FoundModel:
    """The model of a file, or of a folder of shards: it may hold several components."""
    tensors = read_headers(*files_of(path)).tensors
    stored = {each.layout.component: tensors for each in candidates(tensors)}
    if "transformer" not in stored:
        _recognized(path, tensors)  # says what it is
    return _found(path, dict.fromkeys(stored, path), _preset(path, stored, published=False), {})


def _found(
    path: Path, parts: Mapping[str, Path], preset: str, folders: Mapping[str, Path]
) -> FoundModel:
    own = configuration_folders()[preset]
    names = _classes(own).keys()
    parts = {name: each for name, each in parts.items() if name in names}
    folders = {name: each for name, each in folders.items() if name in names}
    rest = names - parts.keys() - folders.keys()
    whole = all(any((own / name / file).is_file() for file in _SETTINGS) for name in rest)
    return FoundModel(preset, parts, folders, whole)


def _preset(path: Path, stored: Mapping[str, Tensors], *, published: bool) -> str:
    """The one preset that components fit.

    Args:
        path: What the user named.
        stored: Tensors in the files of each component.
        published: Whether a model with two experts would have both in the folder.
    """
    _recognized(path, stored["transformer"])
    experts = {*EXPERTS} & stored.keys()
    fitting = {
        name: own for name, own in presets_of(stored).items() if not published or own == experts
    }
    named = [name for name in fitting if name in (path.stem.lower(), path.name.lower())]
    if len(named or fitting) != 1:
        raise ModelError(_ambiguous(path, fitting) if fitting else _no_preset(path))
    (preset,) = named or fitting
    if fitting[preset] != experts:
        raise ModelError(
            f"{shown(path)} is one of the two experts of {preset}: name both, with --model "
            f"{preset} --transformer FILE --transformer-2 FILE"
        )
    return preset


def _recognized(path: Path, tensors: Tensors) -> Recognized:
    try:
        return recognize(tensors, "transformer")
    except ModelError as error:
        raise ModelError(f"{shown(path)} {error}") from error


def _pipeline_class(folder: Path) -> str:
    return str(model_files.read_object(folder / _INDEX).get("_class_name"))


def _classes(folder: Path) -> dict[str, str]:
    """The classes of the components of a model that comes with longtake."""
    index = model_files.read_object(folder / _INDEX)
    return {name: each[1] for name, each in index.items() if isinstance(each, list) and each[1]}


def _can_be(class_name: str, tensors: Tensors, component: str) -> bool:
    found = candidates(tensors, component)
    return any(each.layout.class_name == class_name for each in found)


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
        f"{shown(path)} fits several models, which its tensors do not tell apart: "
        f"{' or '.join(ways)}"
    )


def _no_preset(path: Path) -> str:
    return (
        f"{shown(path)} holds a transformer that no preset has: name the model that has its other "
        "components, with --model FOLDER --transformer FILE"
    )
