"""A component of a model from a file or folder of its own, in any known layout; without torch."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longtake.configs.families import ModelFamily
from longtake.errors import ModelError
from longtake.pipelines.checkpoints.formats.headers import FileTensors, read_headers
from longtake.pipelines.checkpoints.layout import TensorNames
from longtake.pipelines.checkpoints.part_files import SeveralFilesError, files_of, shown
from longtake.pipelines.checkpoints.pieces import assemble
from longtake.pipelines.checkpoints.recognition import EXPERTS, Recognized, candidates, recognize
from longtake.pipelines.loading.files import model_files
from longtake.pipelines.loading.files.model_files import printable
from longtake.pipelines.loading.files.tensor_files import Tensor

if TYPE_CHECKING:
    from longtake.pipelines.loading.tensor_source import TensorSource

_CONFIG = "config.json"
_QUANTIZATION = "quantization_config"


@dataclass(frozen=True)
class Slot:
    """The component of a model that a part stands in for.

    Attributes:
        model: The model, for messages.
        family: Its family; None if it is not installed.
        class_name: Class of the component in the model.
        config: Content of the component's config.json in the model; empty if there is none.
    """

    model: str
    family: ModelFamily | None
    class_name: str
    config: Mapping[str, Any]


@dataclass(frozen=True)
class Part:
    """A component of a model from a file or folder of its own.

    Attributes:
        path: What the user named.
        component: Component of the model that it stands in for.
        recognized: Its family, its layout and the prefix of its names.
        config: Content of its config.json: what the shapes of its tensors tell, over what the
            model says of the component.
        headers: Headers of its files.
        names: The pieces of the file that the module's tensors consist of.
        tensors: The module's tensors, by their names there.
        states: Size and modification time of each file when it was opened.
    """

    path: Path
    component: str
    recognized: Recognized
    config: Mapping[str, Any]
    headers: FileTensors
    names: TensorNames
    tensors: Mapping[str, Tensor]
    states: tuple[tuple[int, int], ...]

    @classmethod
    def open(cls, path: Path, component: str, slot: Slot | None = None) -> Part:
        """Read the headers of a file or folder, and find the component in it.

        Args:
            path: A file, the index of shards, or a folder that holds either of them, or the few
                files that the component is spread over: ComfyUI's LLaVA comes in two.
            component: Component of a model's folder that it is for.
            slot: The same component of the model; None for what the file says alone.

        Raises:
            ModelError: The files cannot be read, hold no such component, or one of another family
                or size; or they hold tensors that the component does not have.
        """
        try:
            return cls._open(path, files_of(path), component, slot)
        except SeveralFilesError as several:
            if not several.files:
                raise
            try:
                return cls._open(path, several.files, component, slot)
            except ModelError:  # they are not one component
                raise several from None

    @classmethod
    def _open(cls, path: Path, files: tuple[Path, ...], component: str, slot: Slot | None) -> Part:
        """The component in some files; see :meth:`open`."""
        headers = read_headers(*files)
        states = tuple(_state(file.path) for file in headers.files)
        stored = headers.tensors
        try:
            recognized = _recognize(stored, component, slot)
        except ModelError as error:
            raise ModelError(f"{shown(path)} {error}") from error
        layout, own = recognized.layout, recognized.own(stored)
        try:
            config = _config(path, recognized, own, slot)
            names = layout.names(config)
        except ModelError as error:
            other = slot is not None and slot.class_name != layout.class_name
            why = f"{slot.model} has a {slot.class_name}" if slot and other else str(error)
            raise ModelError(
                f"{shown(path)} holds {recognized}, which is not usable: {why}"
            ) from error
        shapes = dict(layout.shapes(config))
        tensors = assemble(own, names, shapes, layout.unused, shown(path))
        if strange := [each for each in recognized.strange(stored) if not layout.unused(each)]:
            raise ModelError(
                f"{shown(path)} holds {printable(min(strange))} beside the {layout.component} "
                f"({len(strange)} in all), which is of no known component: take it out"
            )
        return cls(path, component, recognized, config, headers, names, tensors, states)

    @property
    def class_name(self) -> str:
        """Class of the module in diffusers or transformers."""
        return self.recognized.layout.class_name

    @property
    def paths(self) -> tuple[Path, ...]:
        """Its files."""
        return tuple(file.path for file in self.headers.files)

    def source(self) -> TensorSource:
        """The module's tensors, opened to be read.

        Raises:
            ModelError: A file cannot be read.
        """
        from longtake.pipelines.checkpoints.formats.source import FileSource  # imports torch
        from longtake.pipelines.checkpoints.pieces_source import PiecesSource

        source = FileSource(self.headers)
        self.check_unchanged()  # what was opened is what was checked
        return PiecesSource(
            source, self.names, self.tensors, self.recognized.prefix, shown(self.path)
        )

    @cached_property
    def digest(self) -> str:
        """What tells it from other parts, wherever its files are; it samples their values.

        Raises:
            ModelError: A file can no longer be read, or was changed.
        """
        digest = hashlib.sha256(json.dumps([self.component, self.config], sort_keys=True).encode())
        for piece in self.headers.samples():
            digest.update(piece)
        self.check_unchanged()
        return digest.hexdigest()

    def check_unchanged(self) -> None:
        """Check that the files are those that were opened.

        Raises:
            ModelError: One was changed or removed.
        """
        for path, state in zip(self.paths, self.states, strict=True):
            if _state(path) != state:
                raise ModelError(f"{shown(path)} was changed while it was in use: start again")


def check_experts(parts: Mapping[str, Part]) -> None:
    """Check that two experts are not the same weights.

    Raises:
        ModelError: They are, so that one of them was named by mistake.
    """
    experts = [parts[name] for name in EXPERTS if name in parts]
    if len(experts) < 2:
        return
    one, other = ((each.paths, each.recognized.prefix) for each in experts)
    same = len(one[0]) == len(other[0]) and all(map(os.path.samefile, one[0], other[0]))
    if same and one[1] == other[1]:
        raise ModelError(
            f"{shown(experts[0].path)} is named both as transformer and as transformer_2: the "
            "experts of a model are two files"
        )


def _state(path: Path) -> tuple[int, int]:
    """Size and modification time of a file."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise ModelError(f"{shown(path)} cannot be read: {error.strerror}") from error
    return status.st_size, status.st_mtime_ns


def _recognize(stored: Mapping[str, Tensor], component: str, slot: Slot | None) -> Recognized:
    """What the tensors are: of all that they can be, what fits the model."""
    if slot is None or slot.family is None:
        return recognize(stored, component)
    found = candidates(stored, component)
    own = [each for each in found if each.family.name == slot.family.name]
    if found and not own:
        raise ModelError(
            f"holds {found[0]}, and {slot.model} is of {slot.family.label}: name a file of that "
            "family, or another model"
        )
    fitting = [each for each in own if each.layout.class_name == slot.class_name] or own
    return fitting[0] if len(fitting) == 1 else recognize(stored, component)  # refuses others


def _config(
    path: Path, recognized: Recognized, own: Mapping[str, Tensor], slot: Slot | None
) -> dict[str, Any]:
    """The content of config.json: that of the part's folder, if it is of the module's class; else
    what the tensors tell, over the model's."""
    base = {} if slot is None else slot.config
    beside = path / _CONFIG
    if os.path.isfile(beside):
        found = model_files.read_object(beside)
        same_type = "model_type" in found and found["model_type"] == base.get("model_type")
        if same_type or found.get("_class_name") == recognized.layout.class_name:
            return found
    told = recognized.layout.config(own)
    return _merged({name: base[name] for name in base if name != _QUANTIZATION}, told)


def _merged(base: Mapping[str, Any], told: Mapping[str, Any]) -> dict[str, Any]:
    """The values of ``told`` over those of ``base``, in nested objects too."""
    merged = dict(base)
    for name, value in told.items():
        inner = base.get(name)
        if isinstance(value, Mapping) and isinstance(inner, Mapping):
            merged[name] = _merged(inner, value)
        else:
            merged[name] = value
    return merged
