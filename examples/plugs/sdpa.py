"""A layer that takes its attention function, on a sequence that is split across ranks.

    torchrun --standalone --nproc-per-node 3 examples/plugs/sdpa.py

The function has the arguments of torch's ``scaled_dot_product_attention``. The output is compared
with torch's function in one process.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from longtake.parallel import ParallelDims, TokenShards
from longtake.parallel.plugs.sdpa import scaled_dot_product_attention
from longtake.parallel.plugs.sequence import ShardedSequence

NUM_TOKENS, NUM_HEADS, NUM_KV_HEADS, HEAD_SIZE = 101, 6, 2, 16
WIDTH = NUM_HEADS * HEAD_SIZE


class CausalAttention(nn.Module):
    """Grouped-query attention with a function of torch's signature."""

    def __init__(self) -> None:
        super().__init__()
        self.q = nn.Linear(WIDTH, WIDTH)
        self.kv = nn.Linear(WIDTH, 2 * NUM_KV_HEADS * HEAD_SIZE)
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor, attention: Callable[..., torch.Tensor]) -> torch.Tensor:
        """``[B, s, WIDTH]`` to the same shape."""
        q = self.q(x).unflatten(-1, (NUM_HEADS, HEAD_SIZE)).transpose(1, 2)
        kv = self.kv(x).unflatten(-1, (2 * NUM_KV_HEADS, HEAD_SIZE)).transpose(1, 2)
        k, v = kv.chunk(2, dim=1)
        attended = attention(q, k, v, is_causal=True, enable_gqa=True)  # [B, N, s, H]
        out: torch.Tensor = self.out(attended.transpose(1, 2).flatten(2))
        return out


@torch.no_grad()
def main() -> None:
    """Run on every rank."""
    dist.init_process_group("gloo")
    torch.manual_seed(0)  # the same weights and inputs on every rank
    layer, x = CausalAttention(), torch.randn(1, NUM_TOKENS, WIDTH)
    expected = layer(x, F.scaled_dot_product_attention)

    dims = ParallelDims(ring_degree=dist.get_world_size())
    mesh, shards = dims.build_mesh("cpu"), TokenShards.zigzag(NUM_TOKENS, dims)
    attention = partial(scaled_dot_product_attention, sequence=ShardedSequence(mesh, shards))
    out = shards.gather(layer(shards.split(x, mesh, dim=1), attention), mesh, dim=1)

    if dist.get_rank() == 0:
        print(f"largest difference from one process: {(out - expected).abs().max().item():.1e}")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
