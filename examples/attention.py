"""Exact attention over a sequence sharded across ranks.

    torchrun --standalone --nproc-per-node 2 examples/attention.py

Every rank holds a shard of the tokens. The result is compared with attention in one process.
"""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
import torch.nn.functional as F

from longtake.parallel import ParallelDims, TokenShards, usp_attention


def main() -> None:
    """Run on every rank."""
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if on_gpu else "gloo")

    dims = ParallelDims(ulysses_degree=dist.get_world_size())
    mesh = dims.build_mesh(device.type)
    shards = TokenShards.even(1009, dims)  # a prime: no number of ranks divides it

    torch.manual_seed(0)  # the same on every rank
    q, k, v = torch.randn(3, 1, 1009, 5, 64, device=device)  # 5 heads: few ranks divide them
    out = usp_attention(
        *(shards.split(tensor, mesh, dim=1) for tensor in (q, k, v)), mesh=mesh, shards=shards
    )
    whole = shards.gather(out, mesh, dim=1)

    expected = F.scaled_dot_product_attention(*(tensor.transpose(1, 2) for tensor in (q, k, v)))
    error = (whole - expected.transpose(1, 2)).abs().max().item()
    if dist.get_rank() == 0:
        print(f"1009 tokens, 5 heads, {dist.get_world_size()} ranks own {shards.counts} tokens")
        print(f"largest difference from attention in one process: {error:.1e}")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
