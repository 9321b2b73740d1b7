"""The names under which other programs' files hold a component's tensors; without torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from longtake.pipelines.loading.files.tensor_files import Tensor
from longtake.pipelines.loading.tensor_shapes import NamedShapes


@dataclass(frozen=True)
class Piece:
    """Part of a tensor of a file.

    Attributes:
        name: The tensor's name in the file.
        rows: Its first row and the end of its rows (exclusive); None is all of them.
    """

    name: str
    rows: tuple[int, int] | None = None


TensorNames = Mapping[str, tuple[Piece, ...]]
"""For each tensor of a module, by its name there: the pieces of a file that it consists of, one
below the other along the rows. Rows are as long in the module. A single piece may also differ from
the tensor in dimensions of size 1."""


@dataclass(frozen=True)
class Lookalike:
    """A model of another kind, whose LoRAs have names and shapes that this one has, too.

    Attributes:
        name: Its name in messages.
        architecture: Pattern of the beginning of its names in metadata; case does not matter.
        num_layers: Its number of layers, which is smaller, by the name of their list in the module.
    """

    name: str
    architecture: str
    num_layers: Mapping[str, int]


@dataclass(frozen=True)
class CheckpointLayout:
    """How one program's files hold one kind of component.

    A name in a file may have a prefix in front of it, the same for all tensors of the component;
    what is declared here is without it.

    Attributes:
        name: Name of the layout in messages, such as "tencent's".
        component: Component of a model's folder, such as "transformer" or "vae".
        class_name: Class of the module in diffusers or transformers.
        recognizes: Whether tensors by name, in a file without a prefix, are of this layout.
        config: Content of the component's config.json as far as the shapes of the tensors tell it.
        shapes: Names and shapes of the module's tensors, for the content of a config.json.
        names: Where they are in a file, for the content of a config.json.
        unused: Whether a file may hold a tensor of this name that the module does not have.
        lookalikes: Models whose LoRAs would fit by mistake.
        lora_prefixes: What its own LoRAs have in front of names with "_" for each ".".

    The functions raise :class:`~longtake.errors.ModelError` for tensors or values that are no such
    module's.
    """

    name: str
    component: str
    class_name: str
    recognizes: Callable[[Mapping[str, Tensor]], bool]
    config: Callable[[Mapping[str, Tensor]], dict[str, Any]]
    shapes: Callable[[Mapping[str, Any]], NamedShapes]
    names: Callable[[Mapping[str, Any]], TensorNames]
    unused: Callable[[str], bool] = lambda name: False
    lookalikes: tuple[Lookalike, ...] = ()
    lora_prefixes: tuple[str, ...] = ()
