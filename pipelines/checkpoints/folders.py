"""Finds the model that a file of weights, or a publisher's own folder, is of; without torch.

Such files hold components alone. The rest of a model, its configuration, tokenizers and schedulers,
is that of the preset whose transformer is of the same configuration.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longtake.configs.families import family_of, installed_families, load_reference
from longtake.configs.models import configuration_folders
from longtake.errors import ModelError
from longtake.pipelines.checkpoints.formats.headers import read_headers
from longtake.pipelines.checkpoints.part_files import files_of, holds_weights, shown
from longtake.pipelines.checkpoints.recognition import EXPERTS, candidates, recognize
from longtake.pipelines.loading import model_files

_INDEX = "model_index.json"
_SETTINGS = ("scheduler_config.json", "preprocessor_config.json")
"""Files of components that have neither weights nor a vocabulary."""


@dataclass(frozen=True)
class PublisherFolder:
    """A folder as its publisher arranges a model in it.

    Attributes:
        name: Name of the arrangement in messages, such as "Wan's own".
        files: Patterns of paths of files of weights by component. The files are those that match
            the first pattern that any matches.
        folders: Paths of the folders of components without weights, such as tokenizers.
    """

    name: str
    files: Mapping[str, tuple[str, ...]]
    folders: Mapping[str, str]

    def find(self, folder: Path) -> dict[str, Path]:
        """The file of each component with weights, or the folder of several; empty for a folder
        that does not hold a transformer and another component in this arrangement."""
        found = {name: self._find(folder, patterns) for name, patterns in self.files.items()}
        parts = {name: path for name, path in found.items() if path is not None}
        return parts if "transformer" in parts and len(parts) > 1 else {}

    def find_folders(self, folder: Path) -> dict[str, Path]:
        """The folders of components without weights."""
        paths = {name: folder / path for name, path in self.folders.items()}
        return {name: path for name, path in paths.items() if path.is_dir()}

    def _find(self, folder: Path, patterns: Sequence[str]) -> Path | None:
        for pattern in patterns:
            if matching := sorted(folder.glob(pattern)):
                return matching[0] if len(matching) == 1 else matching[0].parent
        return None


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
    folders: Mapping[str, Path]
    whole: bool


def find_model(path: Path) -> FoundModel | None:
    """The model that a file or a publisher's folder is of; None for any other path.

    Raises:
        ModelError: A file cannot be read, or is of no model that is known, or of several.
    """
    if os.path.isfile(path):
        return _found(path, _components(path), {}, published=False)
    if not os.path.isdir(path) or os.path.exists(path / _INDEX):
        return None
    if kind := publisher_of(path):
        return _found(path, kind.find(path), kind.find_folders(path), published=True)
    if holds_weights(path):
        return _found(path, _components(path), {}, published=False)
    return None


def publisher_of(folder: Path) -> PublisherFolder | None:
    """The arrangement of a publisher's folder; None for any other folder.

    Raises:
        ModelError: It holds several models.
    """
    kinds = [
        kind
        for family in installed_families().values()
        for kind in (load_reference(family.folders) if family.folders else ())
        if kind.find(folder)
    ]
    if len(kinds) > 1:
        raise ModelError(
            f"{shown(folder)} holds several models ({', '.join(kind.name for kind in kinds)}): "
            "name the folder of one, or its transformer with --transformer"
        )
    return kinds[0] if kinds else None


def _components(path: Path) -> dict[str, Path]:
    """The components that a file or a folder of shards holds, each to be read from it."""
    tensors = read_headers(*files_of(path)).tensors
    found = {each.layout.component: path for each in candidates(tensors)}
    if "transformer" not in found:
        try:
            recognize(tensors, "transformer")  # says what it is
        except ModelError as error:
            raise ModelError(f"{shown(path)} {error}") from error
    return found


def _found(
    path: Path, parts: Mapping[str, Path], folders: Mapping[str, Path], *, published: bool
) -> FoundModel:
    """The model of parts: the preset whose transformer is theirs.

    Args:
        path: What the user named.
        parts: The files of components with weights.
        folders: The folders of components without.
        published: Whether a model with two experts would have both in the folder.
    """
    presets = _presets_like(parts["transformer"])
    experts = {name for name in EXPERTS if name in parts}
    fitting = {name: own for name, own in presets.items() if not published or own == experts}
    named = [name for name in fitting if name in (path.stem.lower(), path.name.lower())]
    if len(named or fitting) != 1:
        raise ModelError(_ambiguous(path, fitting) if fitting else _no_preset(path))
    (preset,) = named or fitting
    if fitting[preset] != experts:
        raise ModelError(
            f"{shown(path)} is one of the two experts of {preset}: name both, with --model "
            f"{preset} --transformer FILE --transformer-2 FILE"
        )
    own = configuration_folders()[preset]
    parts = {name: each for name, each in parts.items() if name in _index(own)}
    rest = [name for name in _index(own) if name not in parts and name not in folders]
    whole = all(any((own / name / file).is_file() for file in _SETTINGS) for name in rest)
    return FoundModel(preset, parts, folders, whole)


def _index(folder: Path) -> dict[str, list[str]]:
    """The components of a model that comes with longtake, and their libraries and classes."""
    index = model_files.read_object(folder / _INDEX)
    return {name: each for name, each in index.items() if isinstance(each, list) and each[0]}


def _presets_like(file: Path) -> dict[str, set[str]]:
    """Presets with a transformer like that of a file: the names of their transformers, by name."""
    tensors = read_headers(*files_of(file)).tensors
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
            like[name] = {*EXPERTS} & _index(folder).keys()
    return like


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
