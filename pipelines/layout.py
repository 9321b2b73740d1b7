"""The tokens of one video, and the ranks that own them.

Legend: B videos, C channels, F H W latent frames, height and width, S tokens of the whole video, s
this rank's, P values per token.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.distributed.device_mesh import DeviceMesh

from longtake.parallel import ParallelDims, TokenShards
from longtake.pipelines.spec import LatentGrid


@dataclass(frozen=True)
class VideoLayout:
    """Converts between the latents of a video and this rank's tokens.

    Attributes:
        grid: Latent grid of the request.
        dims: Parallel degrees.
        mesh: Device mesh; None on one rank.
        shards: Ownership of the video tokens by rank.
    """

    grid: LatentGrid
    dims: ParallelDims
    mesh: DeviceMesh | None
    shards: TokenShards

    @classmethod
    def of(cls, grid: LatentGrid, dims: ParallelDims, mesh: DeviceMesh | None) -> VideoLayout:
        """The layout whose ranks own equally many tokens, give or take one."""
        return cls(grid, dims, mesh, TokenShards.even(grid.num_tokens, dims))

    def split(self, latents: torch.Tensor) -> torch.Tensor:
        """``[B, C, F, H, W]`` to this rank's tokens, ``[B, s, P]``."""
        return self.shards.split(self.grid.patchify(latents), self.mesh, dim=1)

    def split_condition(self, condition: torch.Tensor) -> torch.Tensor:
        """This rank's tokens of a condition in the grid of the latents, with any channels.

        Args:
            condition: ``[1, C', F, H, W]``, the same for all videos.

        Returns:
            ``[B, s, P']``.
        """
        grid = LatentGrid((1, condition.shape[1], *self.grid.shape[2:]), self.grid.patch)
        own = self.shards.split(grid.patchify(condition), self.mesh, dim=1)
        return own.expand(self.grid.shape[0], -1, -1)

    def gather(self, tokens: torch.Tensor) -> torch.Tensor:
        """The inverse of :meth:`split`, on every rank. Collective."""
        return self.grid.unpatchify(self.shards.gather(tokens.contiguous(), self.mesh, dim=1))

    def sum_over_ranks(self, partial: torch.Tensor) -> torch.Tensor:
        """The sum of a tensor over the ranks that share the video. Collective.

        It adds in the order of the ranks, so all of them get the same bits.
        """
        if self.mesh is None:
            return partial
        one_each = TokenShards.even(self.dims.sequence_degree, self.dims)
        return one_each.gather(partial[None].contiguous(), self.mesh, dim=0).sum(0)
