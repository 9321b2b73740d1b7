"""Batches of a text, the same under every layout.

Legend: B/b sequences of the batch / of one rank, S tokens of a sequence.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.distributed.device_mesh import DeviceMesh

NEWLINE = ord("\n")


@dataclass(frozen=True)
class Text:
    """Batches drawn from the bytes of a text. The tokens are the bytes.

    Args:
        data: ``[num_bytes]``, uint8.
        num_tokens: Length S of a sequence.
        batch_size: Sequences B of a batch, of all ranks together.
        seed: Seed of the draws.
    """

    data: torch.Tensor
    num_tokens: int
    batch_size: int
    seed: int

    @classmethod
    def from_file(cls, path: Path, num_tokens: int, batch_size: int, seed: int) -> Text:
        """Map a file into memory."""
        data = torch.from_file(str(path), size=path.stat().st_size, dtype=torch.uint8)
        return cls(data, num_tokens, batch_size, seed)

    @property
    def tokens_per_batch(self) -> int:
        """``B * S``."""
        return self.batch_size * self.num_tokens

    def batch(self, step: int) -> torch.Tensor:
        """``[B, S]``, int64: the batch of a step, which depends on the seed and the step alone."""
        draw = random.Random(f"{self.seed} {step}")
        num_starts = len(self.data) - self.num_tokens + 1
        starts = [int(draw.random() * num_starts) for _ in range(self.batch_size)]
        return torch.stack([self.data[i : i + self.num_tokens] for i in starts]).long()


def micro_batches(
    batch: torch.Tensor, accumulation: int, data_mesh: DeviceMesh
) -> list[torch.Tensor]:
    """This rank's parts ``[b, S]`` of a batch ``[B, S]``, one for each pass of a step."""
    parts = batch.chunk(accumulation * data_mesh.size())
    return list(parts[data_mesh.get_local_rank() :: data_mesh.size()])


def document_lengths(row: torch.Tensor) -> tuple[int, ...]:
    """Lengths of the documents in a sequence ``[S]``. An empty line ends a document."""
    ends = ((row[:-1] == NEWLINE) & (row[1:] == NEWLINE)).nonzero().flatten() + 2
    bounds = torch.cat([ends.new_zeros(1), ends, ends.new_tensor([len(row)])])
    return tuple(length for length in bounds.diff().tolist() if length)
