"""A linear layer whose weight is stored in fewer bits.

Legend: R rows (output values), C columns (input values), b bytes of a row's codes, G groups of a
row that share a scale.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional

from longtake.configs.fields.weights import StorageDtype
from longtake.pipelines.quantization.block_linear import block_linears
from longtake.pipelines.quantization.codes import CODE_DTYPE, decode
from longtake.pipelines.quantization.sizes import code_bytes, num_scales

WEIGHT, SCALE = "weight", "weight_scale"
"""Names of the parameters that hold codes and scales."""


class StoredLinear(nn.Module):
    """A linear layer that decodes its weight at each call, to the dtype of its input.

    Its codes and scales are parameters, so that they are loaded, split over ranks and streamed as
    all others are. It needs the memory of the decoded weight while it computes.

    Args:
        linear: A layer on the ``meta`` device, in whose place it comes.
        storage: Type that the weight is stored in.

    Attributes:
        weight: Codes, ``[R, b]``.
        weight_scale: Scales, ``[R, G]``, float32.
        bias: ``[R]``, in the dtype of the other weights; None without one.
    """

    def __init__(self, linear: nn.Linear, storage: StorageDtype) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.storage = storage
        rows, columns = linear.weight.shape
        codes, groups = code_bytes(columns, storage), num_scales(columns, storage)
        weight = torch.empty(rows, codes, dtype=CODE_DTYPE, device="meta")
        scale = torch.empty(rows, groups, dtype=torch.float32, device="meta")
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.weight_scale = nn.Parameter(scale, requires_grad=False)
        self.bias = linear.bias

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """``[..., C]`` to ``[..., R]``."""
        weight = decode(
            self.weight, self.weight_scale, self.in_features, self.storage, values.dtype
        )
        return functional.linear(values, weight, self.bias)

    def extra_repr(self) -> str:
        """Sizes and storage, for ``repr``."""
        return f"{self.in_features}, {self.out_features}, storage={self.storage}"


def scale_of(weight: str) -> str:
    """Name of the scales of a weight that is stored in fewer bits."""
    return f"{weight.removesuffix(WEIGHT)}{SCALE}"


def stored_linears(module: nn.Module) -> Mapping[str, StoredLinear]:
    """The layers of a module whose weights are stored in fewer bits, by name."""
    return {name: each for name, each in module.named_modules() if isinstance(each, StoredLinear)}


def stored_dtypes(module: nn.Module) -> dict[str, torch.dtype]:
    """Dtypes of the codes and scales in a module, by the names of the parameters."""
    linears = stored_linears(module)
    codes = {f"{name}.{WEIGHT}": CODE_DTYPE for name in [*linears, *block_linears(module)]}
    return codes | {f"{name}.{SCALE}": torch.float32 for name in linears}
