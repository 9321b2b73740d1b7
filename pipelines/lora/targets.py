"""The tensors that LoRAs may change, under every name that files have for them; without torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from longtake.configs.families import ModelFamily, load_reference
from longtake.pipelines.checkpoints.layout import (
    CheckpointLayout,
    Lookalike,
    Piece,
    TensorNames,
)
from longtake.pipelines.loading.checkpoint import Checkpoint

_TRANSFORMER = re.compile(r"transformer(_\d+)?")
_OWN_NAMES = "diffusers'"


@dataclass(frozen=True)
class Home:
    """Where rows of a file's tensor are in the module.

    Attributes:
        target: Name of the module's tensor.
        rows: First row and end (exclusive) of the file's tensor; None is all of its values.
        begin: Row of the module's tensor that the first one is.
    """

    target: str
    rows: tuple[int, int] | None = None
    begin: int = 0


@dataclass(frozen=True)
class LoraTargets:
    """The tensors of one transformer.

    Attributes:
        shapes: Shapes of the module's tensors, by name.
        layouts: Where they are in the files of each layout, by the layout's name.
        lookalikes: Models whose LoRAs would fit by mistake.
        lora_prefixes: The family's own prefixes of names with "_" for each ".".
    """

    shapes: Mapping[str, tuple[int, ...]]
    layouts: Mapping[str, TensorNames]
    lookalikes: tuple[Lookalike, ...] = ()
    lora_prefixes: tuple[str, ...] = ()

    @cached_property
    def homes(self) -> Mapping[str, Mapping[str, tuple[Home, ...]]]:
        """By layout and name of a file's tensor: where its rows are, if the layout says so."""
        return {layout: _homes(names) for layout, names in self.layouts.items()}

    @cached_property
    def flat_names(self) -> Mapping[str, Mapping[str, str]]:
        """By layout and name with "_" for each ".": the name of a file's module or tensor."""
        return {layout: _flat_names(homes) for layout, homes in self.homes.items()}


def lora_targets(checkpoint: Checkpoint, family: ModelFamily) -> dict[str, LoraTargets]:
    """The tensors of a model's transformers, by component. No weights are needed, or read.

    Args:
        checkpoint: The model's files.
        family: Its family.

    Raises:
        ModelError: The configuration of a transformer is missing, or not valid. For a family
            without layouts: its weights are.
    """
    layouts: tuple[CheckpointLayout, ...] = load_reference(family.layouts) if family.layouts else ()
    targets = {}
    for component in filter(_TRANSFORMER.fullmatch, checkpoint.components):
        class_name = checkpoint.component_class(component)
        own = [each for each in layouts if each.class_name == class_name]
        if own:
            config = checkpoint.config(component)
            names = {each.name: each.names(config) for each in own}
            shapes = dict(own[0].shapes(config))
            first = own[0]
            targets[component] = LoraTargets(shapes, names, first.lookalikes, first.lora_prefixes)
        else:
            shapes = {name: each.shape for name, each in checkpoint.tensors(component).items()}
            only = {_OWN_NAMES: {name: (Piece(name),) for name in shapes}}
            targets[component] = LoraTargets(shapes, only)
    return targets


def _homes(names: TensorNames) -> dict[str, tuple[Home, ...]]:
    """Where the rows of each tensor of a file are in the module."""
    homes: dict[str, tuple[Home, ...]] = {}
    for target, pieces in names.items():
        begin = 0
        for piece in pieces:
            if piece.rows is None and len(pieces) > 1:
                break  # how many rows the file's tensor has is not known here
            homes[piece.name] = (*homes.get(piece.name, ()), Home(target, piece.rows, begin))
            begin += 0 if piece.rows is None else piece.rows[1] - piece.rows[0]
    return homes


def _flat_names(names: Iterable[str]) -> dict[str, str]:
    """Names of modules, by what kohya's scripts make of them; those alike are left out."""
    found: dict[str, set[str]] = {}
    for name in names:
        module = re.sub(r"\.(weight|bias)\Z", "", name)
        found.setdefault(module.replace(".", "_"), set()).add(module)
    return {flat: module for flat, (module, *others) in found.items() if not others}
