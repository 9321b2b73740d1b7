"""Names, in a program's files, of a module that has one list of layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from longtake.pipelines.checkpoints.layout import TensorNames
from longtake.pipelines.checkpoints.names import LayeredNames, Layers, renamed
from longtake.pipelines.loading.tensor_shapes import NamedShapes, Shape


@dataclass(frozen=True)
class Table:
    """Names in a file, as :func:`~longtake.pipelines.checkpoints.names.renamed` takes them.

    Attributes:
        module: Name of the list of layers in the module, such as "blocks".
        file: Its name in the file.
        outside: By name in the file: the names in the module, outside of the layers.
        layer: The same within a layer.
    """

    module: str
    file: str
    outside: Mapping[str, Sequence[str]] = field(default_factory=dict)
    layer: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def names(self, tensors: NamedShapes, num_layers: int) -> TensorNames:
        """Where the tensors of a module are in a file.

        Args:
            tensors: The tensors of the module with one layer.
            num_layers: Its number of layers.
        """
        outside, layer = dict[str, Shape](), dict[str, Shape]()
        for name, shape in tensors:
            own = name.removeprefix(f"{self.module}.0.")
            (outside if own == name else layer)[own] = shape
        named = renamed(iter(layer.items()), self.layer)
        return LayeredNames(
            renamed(iter(outside.items()), self.outside),
            Layers(self.module, self.file, num_layers, named),
        )
