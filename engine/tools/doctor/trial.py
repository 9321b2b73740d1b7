"""The doctor's trial: attention across two ranks on this machine."""

from __future__ import annotations

from typing import Literal

import torch

from longtake.engine.tools.trial import on_ranks
from longtake.parallel import ParallelDims, TokenShards, World, usp_attention

NUM_RANKS = 2


def exchange(device_type: Literal["cpu", "cuda"], deadline_s: float) -> float:
    """Compute attention on two ranks, over gloo, or over NCCL on the first two GPUs.

    Args:
        device_type: "cpu" or "cuda".
        deadline_s: Seconds after which the ranks are ended.

    Returns:
        The largest difference from attention in one process.

    Raises:
        RankError: A rank failed or died, or the deadline passed.
    """
    return float(max(on_ranks(difference, NUM_RANKS, device_type, deadline_s)))


def difference(world: World) -> float:
    """On a rank: the largest difference of attention across all ranks from that in one process.

    Odd counts of tokens and heads give ranks different numbers of them.
    """
    device, dtype = world.device, torch.float16 if world.device.type == "cuda" else torch.float32
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 33, 5, 64).to(device, dtype)
    alone = TokenShards.even(33, ParallelDims())
    expected = usp_attention(q, k, v, mesh=None, shards=alone)
    dims = ParallelDims(ulysses_degree=world.size)
    mesh, shards = world.mesh(dims), TokenShards.even(33, dims)
    own = (shards.split(tensor, mesh, dim=1) for tensor in (q, k, v))
    whole = shards.gather(usp_attention(*own, mesh=mesh, shards=shards), mesh, dim=1)
    return float((whole - expected).abs().max())
