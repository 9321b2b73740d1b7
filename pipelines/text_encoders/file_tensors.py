"""Which tensor of a checkpoint's files transformers assigns to which parameter of an encoder.

transformers renames the tensors of files, and chooses the dtype of each parameter, by rules of its
own that change with its versions. Here it assigns stand-ins for the tensors, which know where they
came from and have no values, so that nothing is read before it is known where it goes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from longtake.errors import ModelError
from longtake.pipelines.loading.files.model_files import printable
from longtake.pipelines.loading.files.tensor_files import FLOAT_DTYPES
from longtake.pipelines.loading.tensor_source import TensorSource

_UNCHANGED = (
    torch.Tensor.to,
    torch.Tensor.contiguous,
    torch.Tensor.detach,
    torch.Tensor.requires_grad_,
)
"""Functions whose result has the values of their first argument; its dtype may be another one."""


class FileTensor(torch.Tensor):
    """A tensor on ``meta`` that stands for one of the files, or for its conversion to a dtype.

    It stays on ``meta`` whatever device it is sent to.

    Attributes:
        source_name: Name of the tensor in the files; None for the result of a computation.
    """

    source_name: str | None = None

    @classmethod
    def of(cls, name: str, shape: Sequence[int], dtype: torch.dtype) -> FileTensor:
        """The stand-in for a tensor of the files."""
        tensor = torch.empty(tuple(shape), dtype=dtype, device="meta").as_subclass(cls)
        tensor.source_name = name
        return tensor

    @classmethod
    def __torch_function__(
        cls,
        function: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        if function is torch.Tensor.to:
            dtypes = (each for each in (*args, *given.values()) if isinstance(each, torch.dtype))
            args, given = (args[0], next(dtypes, args[0].dtype)), {}
        result: Any = super().__torch_function__(function, types, args, given)  # type: ignore[no-untyped-call]
        whole = function is torch.Tensor.__getitem__ and args[1] is Ellipsis
        if function in _UNCHANGED or whole:
            result.source_name = args[0].source_name
        return result


def stand_ins(source: TensorSource) -> dict[str, FileTensor]:
    """A stand-in for each tensor of a source, by name."""
    return {
        name: FileTensor.of(
            name, stored.shape, torch.float32 if stored.dtype in FLOAT_DTYPES else torch.int64
        )
        for name, stored in source.tensors.items()
    }


def source_name(name: str, tensor: torch.Tensor, source: TensorSource) -> str:
    """Name in the files of the tensor that a parameter's stand-in stands for.

    Args:
        name: Name of the parameter, for the error message.
        tensor: The parameter.
        source: The files.

    Raises:
        ModelError: It is no tensor of the files, or one of numbers that are not floating-point.
    """
    found = tensor.source_name if isinstance(tensor, FileTensor) else None
    if found is None:
        raise ModelError(
            f"{name} is computed from several tensors of {source.label}, or from a part of one, by "
            "this version of transformers: save the model again with it"
        )
    stored = source.tensors[found]
    if tensor.is_floating_point() and stored.dtype not in FLOAT_DTYPES:
        raise ModelError(
            f"{source.label} holds {printable(found)} as {stored.dtype}, not one of "
            f"{', '.join(FLOAT_DTYPES)}: quantized weights are not supported"
        )
    return found
