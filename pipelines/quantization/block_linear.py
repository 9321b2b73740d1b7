"""A linear layer whose weight stays in the blocks of a GGUF file.

Legend: R rows (output values), C columns (input values), b bytes of a row's blocks.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional

from longtake.pipelines.checkpoints.formats.gguf_decoding import decode_rows
from longtake.pipelines.checkpoints.formats.gguf_types import tensor_bytes
from longtake.pipelines.quantization.codes import CODE_DTYPE


class BlockLinear(nn.Module):
    """A linear layer that decodes its weight at each call, to the dtype of its input.

    The decoded weight is the one that is read from the file otherwise, to the bit. Its blocks are a
    parameter, so that they are loaded, split over ranks by rows and streamed as all others are.

    Args:
        linear: A layer on the ``meta`` device, in whose place it comes.
        block_type: Type of the blocks, such as "Q4_K".

    Attributes:
        weight: Blocks, ``[R, b]``, held as the dtype of other codes.
        bias: ``[R]``, in the dtype of the other weights; None without one.
    """

    def __init__(self, linear: nn.Linear, block_type: str) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.block_type = block_type
        row_bytes = tensor_bytes(linear.in_features, block_type)
        blocks = torch.empty(linear.out_features, row_bytes, dtype=CODE_DTYPE, device="meta")
        self.weight = nn.Parameter(blocks, requires_grad=False)
        self.bias = linear.bias

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """``[..., C]`` to ``[..., R]``."""
        weight = decode_rows(self.weight.view(torch.uint8), self.block_type).to(values.dtype)
        return functional.linear(values, weight, self.bias)

    def extra_repr(self) -> str:
        """Sizes and type, for ``repr``."""
        return f"{self.in_features}, {self.out_features}, block_type={self.block_type}"


def block_linears(module: nn.Module) -> Mapping[str, BlockLinear]:
    """The layers of a module whose weights stay in blocks, by name."""
    return {name: each for name, each in module.named_modules() if isinstance(each, BlockLinear)}
