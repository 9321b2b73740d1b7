"""What the shapes of a file's tensors tell about a module's configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from longtake.errors import ModelError, one_line
from longtake.pipelines.loading.files.model_files import printable
from longtake.pipelines.loading.files.tensor_files import Tensor
from longtake.pipelines.loading.tensor_shapes import Shape

ConfigT = TypeVar("ConfigT", bound=BaseModel)

MAX_LAYERS = 1000
"""The most layers in a list that a configuration may have."""


class ModuleShapes:
    """Shapes of the tensors of a file, asked for by their names in the module.

    Args:
        tensors: The tensors of the file, by their names there.
        file_name: Name in the file of a tensor of the module, whatever the number of layers.
    """

    def __init__(self, tensors: Mapping[str, Tensor], file_name: Callable[[str], str]) -> None:
        self._tensors, self._file_name = tensors, file_name

    def __contains__(self, name: str) -> bool:
        return self._file_name(name) in self._tensors

    def shape(self, name: str, dims: int) -> Shape:
        """Shape of a tensor that is not part of a larger one.

        Args:
            name: Its name in the module.
            dims: Its number of dimensions.

        Raises:
            ModelError: The file lacks it, or it has another number of dimensions, or no values.
        """
        found = self._file_name(name)
        if found not in self._tensors:
            raise ModelError(f"the tensor {found} is missing: download or save the file again")
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
            name: The tensor's name in the module, with ``{}`` in place of the layer's index.
        """
        count = 0
        while count < MAX_LAYERS and name.format(count) in self:
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
