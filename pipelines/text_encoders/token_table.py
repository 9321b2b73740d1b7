"""Looks up token embeddings on the host: their table is large, and a prompt needs few rows of it.

Legend: V tokens of the vocabulary, D width, L tokens of a prompt.
"""

from __future__ import annotations

import torch
from torch import nn

from longtake.errors import EngineError, ModelError
from longtake.pipelines.loading.tensor_source import TensorSource, read_into


class TokenTable(nn.Module):
    """Takes the place of an embedding of tokens, with the same result.

    Its table is no parameter, so that moving the encoder leaves it on the host.

    Args:
        source: Source of the table.
        name: Name of the table there.
        dtype: Dtype that its values are converted to.
        in_memory: Whether to hold the whole table in host memory. If not, the rows of a prompt are
            read from the source.

    Raises:
        ModelError: The table cannot be read.
    """

    def __init__(
        self, source: TensorSource, name: str, dtype: torch.dtype, *, in_memory: bool
    ) -> None:
        super().__init__()
        self._source, self._name, self._dtype = source, name, dtype
        self._table: torch.Tensor | None = None
        if in_memory:
            self._table = torch.empty(source.tensors[name].shape, dtype=dtype)
            read_into(self._table, source, name)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Look up rows.

        Args:
            tokens: ``[..., L]``, integers below V, on any device.

        Returns:
            ``[..., L, D]``, on the same device.

        Raises:
            EngineError: A row cannot be read any more.
        """
        numbers, places = torch.unique(tokens.cpu(), return_inverse=True)
        try:
            rows = self._rows(numbers)
        except ModelError as error:
            raise EngineError(str(error)) from error  # the work has begun
        return rows[places].to(tokens.device)

    def _rows(self, numbers: torch.Tensor) -> torch.Tensor:
        if self._table is not None:
            return self._table[numbers]
        rows = [
            self._source.read(self._name, slice(number, number + 1)) for number in numbers.tolist()
        ]
        return torch.cat(rows).to(self._dtype)
