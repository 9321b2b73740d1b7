"""Tensors as a file's header lists them, and a module's tensors read through a layout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from longtake.configs.families import load_reference
from longtake.pipelines.checkpoints.layout import CheckpointLayout, Piece
from longtake.pipelines.loading.files.tensor_files import Tensor
from longtake.pipelines.models.wan.family import FAMILY

Tensors = Mapping[str, torch.Tensor]

LAYOUTS: tuple[CheckpointLayout, ...] = load_reference(FAMILY.layouts)


def header(tensors: Tensors) -> dict[str, Tensor]:
    """Header entries of tensors, with offsets that nothing here reads."""
    return {name: Tensor("F32", tuple(each.shape), (0, 0)) for name, each in tensors.items()}


def on_meta(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """Tensors without values."""
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def shapes_of(tensors: Tensors) -> dict[str, tuple[int, ...]]:
    """Shapes by name."""
    return {name: tuple(each.shape) for name, each in tensors.items()}


def layout_of(tensors: Tensors) -> CheckpointLayout:
    """The one layout that recognizes tensors."""
    (found,) = (layout for layout in LAYOUTS if layout.recognizes(header(tensors)))
    return found


def module_tensors(file: Tensors, base: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The tensors of a module, put together as the layout of a file says.

    Every value of the file is used once, or unused by the layout's own words.

    Args:
        file: The tensors of the file.
        base: Content of the config.json of the model that the file is for.
    """
    layout = layout_of(file)
    config = {**base, **layout.config(header(file))}
    names = layout.names(config)
    shapes = dict(layout.shapes(config))
    assert set(shapes) == set(names)
    pieces = {name: [_read(file, piece) for piece in names[name]] for name in shapes}
    used = sum(part.numel() for parts in pieces.values() for part in parts)
    assert used == sum(each.numel() for name, each in file.items() if not layout.unused(name))
    return {name: torch.cat(parts).reshape(shapes[name]) for name, parts in pieces.items()}


def _read(file: Tensors, piece: Piece) -> torch.Tensor:
    tensor = file[piece.name]
    return tensor if piece.rows is None else tensor[slice(*piece.rows)]
