"""Refuses LoRAs of other models that have the names and shapes of this one; without torch."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from longtake.errors import RequestError
from longtake.pipelines.checkpoints.layout import Lookalike
from longtake.pipelines.loading.files.model_files import printable
from longtake.pipelines.lora.lora_file import LoraFile

_ARCHITECTURES = ("modelspec.architecture", "ss_base_model_version")
"""Keys under which trainers name the model in the metadata of a file."""


def check_metadata(file: LoraFile, lookalikes: Iterable[Lookalike]) -> None:
    """Check that the metadata of a LoRA do not name a model that looks alike.

    Raises:
        RequestError: They do.
    """
    for key in _ARCHITECTURES:
        named = file.metadata.get(key, "")
        for each in lookalikes:
            if re.match(each.architecture, named, re.IGNORECASE):
                raise RequestError(
                    f"lora={file.path} is for {each.name}, by its metadata {key}="
                    f"{printable(named)}: its tensors fit this model, but were trained for that one"
                )


def check_layers(
    file: LoraFile,
    changed: Collection[str],
    names: Collection[str],
    lookalikes: Iterable[Lookalike],
) -> None:
    """Check that a LoRA does not change just the layers that a model has that looks alike.

    Args:
        file: The LoRA.
        changed: Names of the tensors of the transformer that it changes.
        names: Names of all of them.
        lookalikes: The models that look alike.

    Raises:
        RequestError: It changes all layers of that model, and none of those beyond.
    """
    for each in lookalikes:
        layers = {own: _layers(own, changed) for own in each.num_layers}
        counts = {own: each.num_layers[own] for own, found in layers.items() if found}
        if counts and all(
            layers[own] == set(range(count)) and count in _layers(own, names)
            for own, count in counts.items()
        ):
            listed = " and ".join(f"{own} 0 to {count - 1}" for own, count in counts.items())
            raise RequestError(
                f"lora={file.path} changes {listed}, which are the layers of {each.name}, and none "
                f"of this model's others: it is for {each.name}"
            )


def _layers(own: str, names: Iterable[str]) -> set[int]:
    """Numbers of the layers of a list that tensors are in."""
    found = (re.match(rf"{re.escape(own)}\.(\d+)\.", name) for name in names)
    return {int(each[1]) for each in found if each}
