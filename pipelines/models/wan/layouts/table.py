"""Names, in a program's files, of a module that has one list of layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from longtake.pipelines.checkpoints.layout import TensorNames
from longtake.pipelines.checkpoints.module_shapes import MAX_LAYERS, ModuleShapes
from longtake.pipelines.checkpoints.names import LayeredNames, Layers, renamed, split_layers
from longtake.pipelines.loading.files.tensor_files import Tensor
from longtake.pipelines.loading.tensor_shapes import NamedShapes


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
            tensors: Tensors of the module, with one layer.
            num_layers: Its number of layers.
        """
        outside, layers = split_layers(tensors, [self.module])
        layer = renamed(layers[self.module], self.layer)
        return LayeredNames(
            renamed(outside, self.outside), Layers(self.module, self.file, num_layers, layer)
        )

    def shapes(self, file: Mapping[str, Tensor], tensors: NamedShapes) -> ModuleShapes:
        """The shapes in a file, by names in the module.

        Args:
            file: Tensors of the file.
            tensors: Tensors of a module with one layer, and with all that one can have.
        """
        names = self.names(tensors, MAX_LAYERS)
        return ModuleShapes(file, lambda name: names[name][0].name)
