"""A small transformer whose sequence is split across ranks.

    torchrun --standalone --nproc-per-node 3 examples/own_model.py

Each rank holds some of the tokens and all of the weights. Only attention communicates. The output
is compared with the same model in one process.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from longtake.parallel import ParallelDims, TokenShards, usp_attention

NUM_TOKENS, NUM_HEADS, HEAD_SIZE, NUM_BLOCKS = 101, 5, 16, 2
WIDTH = NUM_HEADS * HEAD_SIZE


class Block(nn.Module):
    """A transformer block. Its norms and linear layers work token by token."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(
            nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)
        )

    def forward(
        self, x: torch.Tensor, mesh: DeviceMesh | None, shards: TokenShards
    ) -> torch.Tensor:
        """``[B, s, WIDTH]`` to the same shape; s is the number of this rank's tokens."""
        batch, tokens, _ = x.shape
        qkv = self.qkv(self.norm1(x)).view(batch, tokens, 3, NUM_HEADS, HEAD_SIZE)
        q, k, v = qkv.unbind(2)  # [B, s, N, H] each
        attended = usp_attention(q, k, v, mesh=mesh, shards=shards)
        x = x + self.out(attended.flatten(2))
        out: torch.Tensor = x + self.mlp(self.norm2(x))
        return out


def run(
    blocks: nn.ModuleList, x: torch.Tensor, mesh: DeviceMesh | None, shards: TokenShards
) -> torch.Tensor:
    """Split the tokens, apply the blocks, gather the tokens."""
    x = shards.split(x, mesh, dim=1)
    for block in blocks:
        x = block(x, mesh, shards)
    return shards.gather(x, mesh, dim=1)


@torch.no_grad()
def main() -> None:
    """Run on every rank."""
    dist.init_process_group("gloo")
    torch.manual_seed(0)  # the same weights and inputs on every rank
    blocks = nn.ModuleList(Block() for _ in range(NUM_BLOCKS))
    x = torch.randn(1, NUM_TOKENS, WIDTH)

    dims = ParallelDims(ulysses_degree=dist.get_world_size())
    out = run(blocks, x, dims.build_mesh("cpu"), TokenShards.even(NUM_TOKENS, dims))

    alone = ParallelDims()
    expected = run(blocks, x, None, TokenShards.even(NUM_TOKENS, alone))
    if dist.get_rank() == 0:
        print(f"largest difference from one process: {(out - expected).abs().max().item():.1e}")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
