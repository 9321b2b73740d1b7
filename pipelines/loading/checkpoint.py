"""Locates, checks and opens a model's files: a folder in diffusers layout, and parts from other
files. Loads no weights."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError

from longtake.configs.families import family_of
from longtake.configs.models import DEFAULTS_FILE, bundled, preset_of
from longtake.errors import ModelError, one_line
from longtake.pipelines.checkpoints.part import Part, Slot, check_experts
from longtake.pipelines.checkpoints.presets import find_model
from longtake.pipelines.loading.files import hub, model_files
from longtake.pipelines.loading.files.tensor_files import Tensor

if TYPE_CHECKING:
    from longtake.pipelines.loading.tensor_source import TensorSource

_INDEX, _CONFIG = "model_index.json", "config.json"
_MAX_COMPONENTS = 32

ConfigT = TypeVar("ConfigT", bound=BaseModel)


@dataclass(frozen=True)
class Checkpoint:
    """A model's folder in diffusers layout, with components from elsewhere in place of its own.

    Attributes:
        model: The model's name, as given by the user.
        folder: Folder of the model's files.
        index: Content of ``model_index.json``: the pipeline class and each component's class.
        revision: Commit, for a model from the hub.
        repository: Hub id, for a model from the hub.
        parts: Components from files and folders of their own, by name.
        preset: Preset that gives what files of weights do not hold; None for a folder in diffusers
            layout, which is whole.
        folders: Folders that stand in for those of components without weights, by component.
    """

    model: str
    folder: Path
    index: dict[str, Any]
    revision: str | None = None
    repository: str | None = None
    parts: Mapping[str, Part] = field(default_factory=dict)
    preset: str | None = None
    folders: Mapping[str, Path] = field(default_factory=dict)

    @classmethod
    def open(
        cls,
        model: str,
        revision: str | None = None,
        *,
        configs_only: bool = False,
        parts: Mapping[str, Path] = MappingProxyType({}),
    ) -> Checkpoint:
        """Find a model and read its index.

        Args:
            model: A bundled model ("demo"; a folder of that name is "./demo"), a preset, a folder,
                or a repository id on the Hugging Face hub (``owner/name``). Only the configuration
                files of a hub model are downloaded; :meth:`fetch` downloads the rest. Or a file of
                a transformer, or a publisher's own folder: what it does not hold is that of the
                preset that it is recognized as.
            revision: Branch, tag or commit of a hub id or preset; None is the latest.
            configs_only: Whether a preset's bundled configuration files suffice.
            parts: Files or folders that stand in for components of the model, by the component.

        Raises:
            ModelError: The folder or repository does not exist, or is not a pipeline; or a part
                does not fit it.
        """
        found = None if model in bundled() else find_model(Path(os.path.expanduser(model)))
        if found is None:
            return cls._open_whole(model, revision, configs_only)._with_parts(parts)
        bundled_suffices = configs_only or (found.whole and revision is None)
        try:
            whole = cls._open_whole(found.preset, revision, bundled_suffices)
        except ModelError as error:
            raise ModelError(
                f"{model} is of {found.preset}, which has the files that it does not hold: {error}"
            ) from error
        named = replace(whole, model=model, preset=found.preset, folders=found.folders)
        return named._with_parts({**found.parts, **parts})

    @classmethod
    def _open_whole(cls, model: str, revision: str | None, configs_only: bool) -> Checkpoint:
        """The model without parts; see :meth:`open`."""
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
                "layout (transformer/, vae/, text_encoder/, ...), a publisher's own folder, or a "
                "file of a transformer"
            )
        index = model_files.read_object(folder / _INDEX)
        checkpoint = cls(model, folder, index, commit, repository)
        if repository is not None:
            names = itertools.product(checkpoint.components, model_files.CONFIGS)
            hub.fetch(repository, commit, ["/".join(each) for each in names])
        return checkpoint

    def _with_parts(self, paths: Mapping[str, Path]) -> Checkpoint:
        """The same model with components from elsewhere; see :meth:`open`."""
        parts: dict[str, Part] = {}
        for component, path in paths.items():
            if not self.has_component(component):
                raise ModelError(
                    f"{component}={os.fspath(path)!r} stands in for nothing: {self.model} has "
                    f"{', '.join(self.components)}"
                )
            parts[component] = Part.open(path.expanduser(), component, self._slot(component))
        check_experts(parts)
        return replace(self, parts=parts)

    def _slot(self, component: str) -> Slot:
        """What the model itself says of a component."""
        config = self.folder / component / _CONFIG
        return Slot(
            self.model,
            family_of(self.pipeline_class),
            self.component_class(component),
            model_files.read_object(config) if config.is_file() else {},
        )

    def folder_of(self, component: str) -> Path:
        """The folder of a component's configuration and vocabulary."""
        return self.folders.get(component, self.folder / component)

    def label(self, component: str) -> str:
        """What holds a component, for error messages: its folder, or the part's file or folder."""
        part = self.parts.get(component)
        return str(self.folder / component if part is None else part.path)

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
    def defaults_name(self) -> str:
        """Name under which :func:`~longtake.configs.models.defaults_of` knows the model."""
        return self.preset or self.model

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
        if component in self.parts:
            return self.parts[component].class_name
        named = self.index.get(component)
        if not (isinstance(named, list) and len(named) == 2 and isinstance(named[1], str)):
            raise ModelError(
                f"{self.folder / 'model_index.json'} names no {component}: the pipeline is not "
                "complete, download or save it again"
            )
        return model_files.printable(named[1])

    def config(self, component: str, name: str = _CONFIG) -> dict[str, Any]:
        """A component's configuration.

        Raises:
            ModelError: The file is missing, or not a JSON object.
        """
        if component in self.parts and name == _CONFIG:
            return dict(self.parts[component].config)
        return model_files.read_object(self.folder_of(component) / name)

    def parse_config(self, kind: type[ConfigT], component: str, name: str = _CONFIG) -> ConfigT:
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
            part = name == _CONFIG and component in self.parts
            where = self.label(component) if part else self.folder_of(component) / name
            raise ModelError(f"{where} cannot be used: {one_line(error)}") from error

    def weights_name(self, component: str) -> str:
        """Name of a component's weights file, or of the index of its shards.

        Raises:
            ModelError: There is none.
        """
        if component in self.parts:
            return self.parts[component].path.name
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
            if component not in self.folders
            for name in model_files.text_files(self._names(component))
        ]
        own = [component for component in components if component not in self.parts]
        wanted += [f"{component}/{self.weights_name(component)}" for component in own]
        indexes = [name for name in wanted if name.endswith(".json") and ".index." in name]
        if indexes and self.repository is not None:
            hub.fetch(self.repository, self.revision, indexes)
        for index in indexes:
            folder = index.partition("/")[0]
            wanted += [f"{folder}/{shard}" for shard in model_files.shards(self.folder / index)]
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
        """A component's files, each checked against its header for completeness.

        Raises:
            ModelError: A file is missing, damaged, or a pickle.
        """
        if component in self.parts:
            return self.parts[component].paths
        files = self._weights(component)
        for file in files:
            model_files.read_header(file)
        return files

    def tensors(self, component: str) -> dict[str, Tensor]:
        """A component's tensors by name, from the headers of its weights files.

        Raises:
            ModelError: As :meth:`weights`, or two files hold the same tensor.
        """
        if component in self.parts:
            return dict(self.parts[component].tensors)
        return model_files.merge_tensors(map(model_files.read_header, self._weights(component)))

    def source(self, component: str) -> TensorSource:
        """The tensors of a component, opened to be read.

        Raises:
            ModelError: As :meth:`tensors`.
        """
        if component in self.parts:
            return self.parts[component].source()
        from longtake.pipelines.loading.tensor_source import SafetensorsSource  # imports torch

        return SafetensorsSource(self._weights(component))

    def check_vocabulary(self, component: str) -> None:
        """Check that a tokenizer's files exist, are within the size limit, and can be parsed.

        Raises:
            ModelError: A file is missing, too large, damaged, or names code to run.
        """
        model_files.check_vocabulary(self._names(component), self.folder_of(component))

    def fingerprint(self) -> str:
        """A digest of the model's files, independent of their location and modification times.

        Covers each tensor's name, dtype, offsets, and first and last 4 KiB. Training changes all
        tensors, so these samples suffice, and a model of many GB is not read whole.

        Raises:
            ModelError: A file cannot be read.
        """
        digest = hashlib.sha256()
        for name, path in sorted(self._fingerprinted_files().items()):
            digest.update(f"{name.as_posix()}\0".encode())
            for piece in model_files.samples(path):
                digest.update(piece)
        for _, part in sorted(self.parts.items()):
            digest.update(part.digest.encode())
        self.check_parts_unchanged()
        return digest.hexdigest()

    def check_parts_unchanged(self) -> None:
        """Check that the files of parts are those that were opened.

        Raises:
            ModelError: One was changed or removed.
        """
        for part in self.parts.values():
            part.check_unchanged()

    def _fingerprinted_files(self) -> dict[Path, Path]:
        """Files of the model by their paths in its folder, wherever they are."""
        files = {Path(name): self.folder / name for name in (_INDEX, DEFAULTS_FILE)}
        for component in self.components:
            folder, names = self.folder_of(component), self._names(component)
            own = {*model_files.text_files(names)}
            if component in self.parts:
                own.discard(_CONFIG)  # the part's counts
            elif component not in self.folders and any(".safetensors" in name for name in names):
                weights = self._weights(component)
                own |= {self.weights_name(component), *(file.name for file in weights)}
            files |= {Path(component, name): folder / name for name in own}
        return {name: file for name, file in files.items() if file.is_file()}

    def _weights(self, component: str) -> tuple[Path, ...]:
        folder, name = self.folder / component, self.weights_name(component)
        files = model_files.shards(folder / name) if name.endswith(".json") else [name]
        return tuple(folder / file for file in files)

    def _names(self, component: str) -> set[str]:
        """Names of the files in a component's folder, downloaded or not."""
        if self._hub_files is not None and component not in self.folders:
            start = f"{component}/"
            return {name[len(start) :] for name in self._hub_files if name.startswith(start)}
        try:
            return set(os.listdir(self.folder_of(component)))
        except OSError:  # the error is raised for the file that is needed
            return set()

    @cached_property
    def _hub_files(self) -> list[str] | None:
        """Names of all files of the hub repository; None if not from the hub, or unreachable."""
        if self.repository is None or self.revision is None:
            return None
        return hub.listed_files(self.repository, self.revision)
