"""What the shapes of a file's tensors tell about a module's configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from longtake.errors import ModelError, one_line
from longtake.pipelines.checkpoints.layout import TensorNames
from longtake.pipelines.loading.model_files import printable
from longtake.pipelines.loading.tensor_files import Tensor
from longtake.pipelines.loading.tensor_shapes import Shape

ConfigT = TypeVar("ConfigT", bound=BaseModel)


class ModuleShapes:
    """Shapes of the tensors of a file, asked for by their names in the module.

    Args:
        tensors: The tensors of the file, by their names there.
        names: Names in the file; those of a module of any size will do.
    """

    def __init__(self, tensors: Mapping[str, Tensor], names: TensorNames) -> None:
        self._tensors, self._names = tensors, names

    def __contains__(self, name: str) -> bool:
        return self._names[name][0].name in self._tensors

    def shape(self, name: str, dims: int) -> Shape:
        """Shape of a tensor that is not part of a larger one.

        Args:
            name: Its name in the module.
            dims: Its number of dimensions.

        Raises:
            ModelError: The file lacks it, or it has another number of dimensions, or no values.
        """
        found = self._names[name][0].name
        if found not in self._tensors:
            raise ModelError(f"the tensor {found} is missing: the file is not complete")
        shape = self._tensors[found].shape
        if len(shape) != dims or 0 in shape:
            raise ModelError(
                f"the tensor {found} has shape {printable(shape)}: it must have {dims} dimensions, "
                "none of them 0"
            )
        return shape

    def num_layers(self, name: str) -> int:
        """Number of layers in a list, of which the file holds a tensor of each.

        Args:
            name: The tensor's name in the module, in layer 0.
        """
        start, _, own = self._names[name][0].name.partition(".0.")
        count = 0
        while f"{start}.{count}.{own}" in self._tensors:
            count += 1
        return count


def parse_config(kind: type[ConfigT], content: Mapping[str, Any]) -> ConfigT:
    """The content of a component's config.json, validated.

    Args:
        kind: The pydantic model that it must match.
        content: The content.

    Raises:
        ModelError: It does not match.
    """
    try:
        return kind.model_validate(dict(content))
    except ValidationError as error:
        raise ModelError(f"the configuration cannot be used: {one_line(error)}") from error
