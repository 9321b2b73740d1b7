"""A sequence that is split across ranks, as the plugs take it.

Legend: B batch, S/s tokens of the whole sequence / of this rank, N query heads, M KV heads, H head
size.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch.distributed.device_mesh import DeviceMesh

from longtake.errors import TensorError
from longtake.parallel.attention.usp_attention import usp_attention
from longtake.parallel.shards import TokenShards

IGNORED_LABEL = -100
"""The label of a token without a loss; torch's cross entropy skips it by default."""


@dataclass(frozen=True)
class ShardedSequence:
    """A sequence that is split across ranks, and the options of its attention.

    Args:
        mesh: Mesh with axes ``ring`` and ``ulysses``; None for a single process.
        shards: Ownership of the tokens.
        document_lengths: Lengths of the documents that are packed in the sequence; None for one.
        kernel: "auto", or the name of a local kernel (:mod:`longtake.parallel.kernels`).
        deterministic: Whether gradients are bitwise repeatable.

    Raises:
        LayoutError: The mesh and the shards have different numbers of ranks.
    """

    mesh: DeviceMesh | None
    shards: TokenShards
    document_lengths: tuple[int, ...] | None = None
    kernel: str = "auto"
    deterministic: bool = False

    def __post_init__(self) -> None:
        self.shards.check_mesh(self.mesh)

    def attend(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        *,
        causal: bool,
        scale: float | None,
        kv_shards: TokenShards | None = None,
    ) -> torch.Tensor:
        """:func:`longtake.parallel.usp_attention` over this sequence.

        v may have a smaller head size than q and k, as in multi-head latent attention: it travels
        padded with zeros, and the output is cut to its size.
        """
        surplus = k.shape[-1] - v.shape[-1]
        out = usp_attention(
            q,
            k,
            F.pad(v, (0, surplus)) if surplus > 0 else v,
            mesh=self.mesh,
            shards=self.shards,
            kv_shards=kv_shards,
            causal=causal,
            document_lengths=self.document_lengths,
            kernel=self.kernel,
            scale=scale,
            deterministic=self.deterministic,
        )
        return out[..., : v.shape[-1]] if surplus > 0 else out

    def split(self, tensor: torch.Tensor, dim: int) -> torch.Tensor:
        """Select this rank's tokens: ``[..., S, ...]`` to ``[..., s, ...]``. Sends nothing."""
        return self.shards.split(tensor, self.mesh, dim)

    def positions(self) -> torch.Tensor:
        """Position of each of this rank's tokens in its document: int64 ``[s]``."""
        positions = self.shards.positions(self.mesh)
        if self.document_lengths is None:
            return positions
        stops = torch.tensor(list(accumulate(self.document_lengths)), device=positions.device)
        starts = F.pad(stops, (1, 0))
        return positions - starts[torch.searchsorted(stops, positions, right=True)]

    def shift_labels(self, labels: torch.Tensor) -> torch.Tensor:
        """Label each of the whole sequence's tokens with the next token of its document.

        Args:
            labels: ``[B, S]``, the whole sequence: token ids, or -100 for a token that is not to be
                predicted.

        Returns:
            ``[B, S]``, -100 where a document ends; :meth:`split` selects this rank's.

        Raises:
            TensorError: Another shape.
        """
        if labels.ndim != 2 or labels.shape[1] != self.shards.num_tokens:
            raise TensorError(
                f"labels of shape {tuple(labels.shape)} must be [batch, {self.shards.num_tokens}]: "
                "pass those of the whole sequence on every rank"
            )
        shifted = F.pad(labels, (0, 1), value=IGNORED_LABEL)[:, 1:]
        last = [stop - 1 for stop in accumulate(self.document_lengths or ()) if stop > 0]
        shifted[:, last] = IGNORED_LABEL
        return shifted
