"""What a file of weights is: its format, its components, and the models that they are parts of."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longtake.configs.fields.few_step import FewStep
from longtake.engine.tools.inspection.models import known_models
from longtake.errors import ModelError
from longtake.pipelines import registry
from longtake.pipelines.checkpoints.formats.headers import FileTensors
from longtake.pipelines.checkpoints.part import Part
from longtake.pipelines.checkpoints.part_files import shown
from longtake.pipelines.checkpoints.recognition import Recognized, candidates, recognize
from longtake.pipelines.loading.checkpoint import Checkpoint
from longtake.pipelines.loading.files.tensor_files import Tensor


@dataclass(frozen=True)
class ComponentReport:
    """A component in a file.

    Attributes:
        recognized: Its family, its layout and the prefix of its names.
        num_tensors: Tensors of the file that are of it.
        num_values: Values in them.
        config: Content of its config.json as far as the shapes tell it.
        fits: Models that it is of the size of, and their components that it can stand in for.
        problem: Why it cannot be used; empty if it can.
    """

    recognized: Recognized
    num_tensors: int
    num_values: int
    config: Mapping[str, Any]
    fits: tuple[tuple[str, str], ...]
    problem: str


@dataclass(frozen=True)
class CheckpointReport:
    """A file of weights.

    Attributes:
        path: What the user named.
        kind: Name of the format, such as "safetensors" or "fp8_scaled".
        num_bytes: Size of the files.
        dtypes: Number of stored tensors by dtype.
        metadata: What the file says of itself.
        few_step: Settings that it is made for; None if it names none.
        components: What it holds.
    """

    path: Path
    kind: str
    num_bytes: int
    dtypes: Mapping[str, int]
    metadata: Mapping[str, str]
    few_step: FewStep | None
    components: tuple[ComponentReport, ...]

    @property
    def is_usable(self) -> bool:
        """Whether all of it can be used in a known model."""
        return all(each.fits and not each.problem for each in self.components)


def report_checkpoint(path: Path, headers: FileTensors, model: str | None) -> CheckpointReport:
    """Describe a file of weights.

    Args:
        path: What the user named.
        headers: The headers of its files.
        model: Model that it should fit; None for the bundled models and the presets.

    Raises:
        ModelError: The tensors are of no known layout, or there is no such model.
    """
    try:
        found = candidates(headers.tensors) or [recognize(headers.tensors)]  # says what is wrong
    except ModelError as error:
        raise ModelError(f"{shown(path)} {error}") from error
    return CheckpointReport(
        path,
        headers.kind,
        sum(file.path.stat().st_size for file in headers.files),
        Counter(tensor.dtype for _, tensor in headers.stored.values()),
        headers.metadata,
        FewStep.from_metadata(headers.metadata, path),
        tuple(_component(path, each, each.own(headers.tensors), model) for each in found),
    )


def _component(
    path: Path, recognized: Recognized, tensors: Mapping[str, Tensor], model: str | None
) -> ComponentReport:
    """Describe one component, and check that it can be used."""
    config: dict[str, Any] = {}
    fits: tuple[tuple[str, str], ...] = ()
    problem = ""
    try:
        told = recognized.layout.config(tensors)
        config = json.loads(json.dumps(told))  # with lists, as files have them
        fits = tuple(
            (checkpoint.model, component)
            for checkpoint in known_models(model)
            for component in _like(checkpoint, recognized, config)
        )
        if model is not None and not fits:
            problem = f"{model} has no {recognized.layout.component} of this family and size"
        _open(path, recognized, fits[0] if fits else None)
    except ModelError as error:
        problem = problem or str(error)
    return ComponentReport(
        recognized,
        len(tensors),
        sum(math.prod(each.shape) for each in tensors.values()),
        config,
        fits,
        problem,
    )


def _like(checkpoint: Checkpoint, found: Recognized, told: Mapping[str, Any]) -> list[str]:
    """Components of a model that are of the class and configuration of what was found."""
    if registry.family_of(checkpoint).name != found.family.name:
        return []
    return [
        component
        for component in checkpoint.components
        if checkpoint.component_class(component) == found.layout.class_name
        and _agree(checkpoint.config(component), told)
    ]


def _agree(config: Mapping[str, Any], told: Mapping[str, Any]) -> bool:
    """Whether a model's configuration says what the shapes tell; it may leave defaults out."""
    for name, value in told.items():
        own = config.get(name, value)
        if isinstance(value, Mapping) and isinstance(own, Mapping):
            if not _agree(own, value):
                return False
        elif own != value:
            return False
    return True


def _open(path: Path, recognized: Recognized, fit: tuple[str, str] | None) -> None:
    """Check every tensor's name and shape, as for a rendering.

    Raises:
        ModelError: One is missing, unknown, or of another shape.
    """
    if fit is None:
        Part.open(path, recognized.layout.component)
        return
    model, component = fit
    checkpoint = Checkpoint.open(model, configs_only=True, parts={component: path})
    registry.inspect(checkpoint, weights=False)
