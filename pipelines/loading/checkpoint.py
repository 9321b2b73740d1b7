"""Locates, checks and opens a model's files in diffusers layout. Loads no weights."""

from __future__ import annotations

import hashlib
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError

from longtake.configs.models import DEFAULTS_FILE, bundled, preset_of
from longtake.errors import ModelError, one_line
from longtake.files.reading import read_json, read_regular
from longtake.pipelines.loading import hub, model_files
from longtake.pipelines.loading.tensor_files import Tensor

if TYPE_CHECKING:
    from longtake.pipelines.loading.tensor_source import TensorSource

_INDEX = "model_index.json"
_MAX_COMPONENTS, _MAX_SHARDS = 32, 1000
_SHARD = re.compile(r"[\w.-]+\.safetensors", re.ASCII)

ConfigT = TypeVar("ConfigT", bound=BaseModel)


@dataclass(frozen=True)
class Checkpoint:
    """A model's folder in diffusers layout.

    Attributes:
        model: The model's name, as given by the user.
        folder: Folder of the model's files.
        index: Content of ``model_index.json``: the pipeline class and each component's class.
        revision: Commit, for a model from the hub.
        repository: Hub id, for a model from the hub.
    """

    model: str
    folder: Path
    index: dict[str, Any]
    revision: str | None = None
    repository: str | None = None

    @classmethod
    def open(
        cls, model: str, revision: str | None = None, *, configs_only: bool = False
    ) -> Checkpoint:
        """Find a model and read its index.

        Args:
            model: A bundled model ("demo"; a folder of that name is "./demo"), a preset, a folder,
                or a repository id on the Hugging Face hub (``owner/name``). Only the configuration
                files of a hub model are downloaded; :meth:`fetch` downloads the rest.
            revision: Branch, tag or commit of a hub id; None is the latest.
            configs_only: Whether a preset's bundled configuration files suffice.

        Raises:
            ModelError: The folder or repository does not exist, or is not a pipeline.
        """
        folder = bundled().get(model, Path(os.path.expanduser(model)))
        commit = repository = None
        if not os.path.exists(folder):  # Path.exists raises on names that no file can have
            preset = preset_of(model)
            if preset is not None and configs_only and revision is None:
                folder = preset[0]
            else:
                repository = preset[1] if preset else model
                folder = hub.fetch(repository, revision, (_INDEX, DEFAULTS_FILE))
                commit = folder.name  # the cache's snapshots/COMMIT
        elif model not in bundled() and folder.is_dir():
            model_files.check_folder(folder)
        if not (folder / _INDEX).is_file():
            raise ModelError(
                f"{model} has no model_index.json: pass the folder of a pipeline in diffusers "
                "layout (transformer/, vae/, text_encoder/, ...)"
            )
        checkpoint = cls(model, folder, _read_json(folder / _INDEX), commit, repository)
        if repository is not None:
            names = itertools.product(checkpoint.components, model_files.CONFIGS)
            hub.fetch(repository, commit, ["/".join(each) for each in names])
        return checkpoint

    @property
    def components(self) -> list[str]:
        """Names of the index's components, excluding null ones.

        Raises:
            ModelError: There are more than 32.
        """
        named = [name for name in self.index if name.isidentifier() and self.has_component(name)]
        if len(named) > _MAX_COMPONENTS:
            raise ModelError(
                f"{self.model} has {len(named)} components in its model_index.json: "
                f"{_MAX_COMPONENTS} are the most that are read"
            )
        return named

    @property
    def pipeline_class(self) -> str:
        """Name of the pipeline's class in diffusers."""
        return model_files.printable(self.index.get("_class_name"))

    def has_component(self, name: str) -> bool:
        """Whether the index names a component: a list that is not ``[null, null]``."""
        class_ = self.index.get(name)
        return isinstance(class_, list) and any(each is not None for each in class_)

    def component_class(self, component: str) -> str:
        """Name of a component's class.

        Raises:
            ModelError: The index does not name one.
        """
        named = self.index.get(component)
        if not (isinstance(named, list) and len(named) == 2 and isinstance(named[1], str)):
            raise ModelError(
                f"{self.folder / 'model_index.json'} names no {component}: the pipeline is not "
                "complete, download or save it again"
            )
        return model_files.printable(named[1])

    def config(self, component: str, name: str = "config.json") -> dict[str, Any]:
        """A component's configuration.

        Raises:
            ModelError: The file is missing, or not a JSON object.
        """
        return _read_json(self.folder / component / name)

    def parse_config(
        self, kind: type[ConfigT], component: str, name: str = "config.json"
    ) -> ConfigT:
        """A component's configuration, validated.

        Args:
            kind: The pydantic model that it must match.
            component: Name of the component.
            name: Name of the file.

        Raises:
            ModelError: The file is missing, not a JSON object, or does not match.
        """
        content = self.config(component, name)
        try:
            return kind.model_validate(content)
        except ValidationError as error:
            raise ModelError(
                f"{self.folder / component / name} cannot be used: {one_line(error)}"
            ) from error

    def weights_name(self, component: str) -> str:
        """Name of a component's weights file, or of the index of its shards.

        Raises:
            ModelError: There is none.
        """
        return model_files.weights_file(self._names(component), self.folder / component)

    def fetch(self, components: Sequence[str], without_weights: Sequence[str] = ()) -> None:
        """Download the files of components; a no-op for a model that is not from the hub.

        Args:
            components: Names of components with weights.
            without_weights: Names of components without weights, such as tokenizers.

        Raises:
            ModelError: A file cannot be downloaded.
        """
        if self.repository is None or self._hub_files is None:
            return
        hub.fetch(self.repository, self.revision, self.files(components, without_weights))

    def files(self, components: Sequence[str], without_weights: Sequence[str] = ()) -> list[str]:
        """Paths in the model's folder of the files that are read of components, sorted.

        The indexes of shards are downloaded for a model from the hub.

        Args:
            components: Names of components with weights.
            without_weights: Names of components without weights, such as tokenizers.

        Raises:
            ModelError: A component has no weights, or an index cannot be downloaded or is invalid.
        """
        wanted = [
            f"{component}/{name}"
            for component in (*components, *without_weights)
            for name in model_files.text_files(self._names(component))
        ]
        wanted += [f"{component}/{self.weights_name(component)}" for component in components]
        indexes = [name for name in wanted if name.endswith(".json") and ".index." in name]
        if indexes and self.repository is not None:
            hub.fetch(self.repository, self.revision, indexes)
        for index in indexes:
            folder = index.partition("/")[0]
            wanted += [f"{folder}/{shard}" for shard in _shards(self.folder / index)]
        return sorted(wanted)

    def require(self, components: Sequence[str]) -> None:
        """Download components, if the model is from the hub, and check their weights.

        Raises:
            ModelError: A file cannot be downloaded, is missing or damaged.
        """
        self.fetch(components)
        for component in components:
            self.weights(component)

    def weights(self, component: str) -> tuple[Path, ...]:
        """A component's safetensors files, each checked against its header for completeness.

        Raises:
            ModelError: A file is missing, damaged, or a pickle.
        """
        files = self._weights(component)
        for file in files:
            model_files.read_header(file)
        return files

    def tensors(self, component: str) -> dict[str, Tensor]:
        """A component's tensors by name, from the headers of its weights files.

        Raises:
            ModelError: As :meth:`weights`, or two files hold the same tensor.
        """
        return model_files.merge_tensors(map(model_files.read_header, self._weights(component)))

    def source(self, component: str) -> TensorSource:
        """The tensors of a component, opened to be read.

        Raises:
            ModelError: As :meth:`tensors`.
        """
        from longtake.pipelines.loading.tensor_source import SafetensorsSource  # imports torch

        return SafetensorsSource(self._weights(component))

    def check_vocabulary(self, component: str) -> None:
        """Check that a tokenizer's files exist, are within the size limit, and can be parsed.

        Raises:
            ModelError: A file is missing, too large, damaged, or names code to run.
        """
        folder, names = self.folder / component, self._names(component)
        model_files.check_vocabulary(names, folder)
        if "auto_map" in self.config(component, model_files.TOKENIZER_CONFIG):
            raise ModelError(
                f"{folder / model_files.TOKENIZER_CONFIG} names code of its own (auto_map), which "
                "is not run: take it out, if the tokenizer does without"
            )
        for name in model_files.text_files(names):
            _read(folder / name)
        if "tokenizer.json" in names:
            model_files.check_tokenizer(folder / "tokenizer.json")

    def fingerprint(self) -> str:
        """A digest of the model's files, independent of their location and modification times.

        Covers each tensor's name, dtype, offsets, and first and last 4 KiB. Training changes all
        tensors, so these samples suffice, and a model of many GB is not read whole.

        Raises:
            ModelError: A file cannot be read.
        """
        digest = hashlib.sha256()
        for path in self._fingerprinted_files():
            digest.update(f"{path.relative_to(self.folder).as_posix()}\0".encode())
            pieces: Iterator[bytes]
            if path.suffix == ".safetensors":
                pieces = model_files.read_header(path).samples()
            else:
                pieces = iter([_read(path)])
            try:
                for piece in pieces:
                    digest.update(piece)
            except OSError as error:
                raise ModelError(f"{path} cannot be read: {error.strerror}") from error
        return digest.hexdigest()

    def _fingerprinted_files(self) -> list[Path]:
        files = [self.folder / name for name in (_INDEX, DEFAULTS_FILE)]
        for component in self.components:
            folder, names = self.folder / component, self._names(component)
            files += [folder / name for name in model_files.text_files(names)]
            if any(".safetensors" in name for name in names):
                index = folder / self.weights_name(component)
                files += {index, *self._weights(component)}
        return sorted(file for file in files if file.is_file())

    def _weights(self, component: str) -> tuple[Path, ...]:
        folder, name = self.folder / component, self.weights_name(component)
        files = _shards(folder / name) if name.endswith(".json") else [name]
        return tuple(folder / file for file in files)

    def _names(self, component: str) -> set[str]:
        """Names of the files in a component's folder, downloaded or not."""
        if self._hub_files is not None:
            start = f"{component}/"
            return {name[len(start) :] for name in self._hub_files if name.startswith(start)}
        try:
            return set(os.listdir(self.folder / component))
        except OSError:  # the error is raised for the file that is needed
            return set()

    @cached_property
    def _hub_files(self) -> list[str] | None:
        """Names of all files of the hub repository; None if not from the hub, or unreachable."""
        if self.repository is None or self.revision is None:
            return None
        return hub.listed_files(self.repository, self.revision)


def _shards(index: Path) -> list[str]:
    """Names of the shards in a weights index, all in the index's folder."""
    mapped = _read_json(index).get("weight_map")
    shards = list(mapped.values()) if isinstance(mapped, dict) else []
    if not shards or any(not isinstance(each, str) for each in shards):
        raise ModelError(f"{index} maps no weights: download or save the model again")
    for shard in shards:
        if not _SHARD.fullmatch(shard):
            raise ModelError(
                f"{index} names {model_files.printable(shard)}, which is no safetensors file "
                "beside it: download or save the model again"
            )
    names = sorted(set(shards))
    if len(names) > _MAX_SHARDS:
        raise ModelError(
            f"{index} names {len(names)} files: {_MAX_SHARDS} are the most that are read"
        )
    return names


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
    except FileNotFoundError as error:
        raise ModelError(f"{path} is missing: download or save the model again") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        raise ModelError(f"{path} cannot be read as JSON: {reason}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} holds no JSON object: download or save the model again")
    return content


def _read(path: Path) -> bytes:
    try:
        return read_regular(path, model_files.MAX_VOCABULARY_BYTES)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error
