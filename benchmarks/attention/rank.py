"""What a rank does in the attention benchmark."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F

from benchmarks.attention.implementations import BY_NAME
from benchmarks.contest import Contestant, Prepared, rank_device
from benchmarks.memory import peak_memory
from benchmarks.traffic import TrafficMeter
from longtake.parallel import ParallelDims, TokenShards

Shape = tuple[int, int, int, int]
"""Batch size, tokens of the whole sequence, number of heads, head size."""

_SAMPLED_QUERIES = 16


def prepare(contestant: Contestant, shape: Shape, dtype: torch.dtype, device_type: str) -> Prepared:
    """Create the inputs and measure error, traffic and memory of a call.

    Returns:
        A call, and its figures: ``error``, the largest difference from attention in float64 over
        some of this rank's queries; ``bytes_sent``; ``collectives``; ``peak_bytes``.
    """
    implementation = BY_NAME[contestant.name]
    dims = ParallelDims(ulysses_degree=dist.get_world_size())
    own = TokenShards.even(shape[1], dims).ranges[dist.get_rank()][0]
    generator, device = torch.Generator().manual_seed(0), rank_device(device_type)
    q, k, v = (torch.randn(shape, generator=generator).to(device, dtype) for _ in range(3))
    inputs = [tensor[:, own.start : own.stop].clone() for tensor in (q, k, v)]
    sampled = torch.linspace(own.start, own.stop - 1, _SAMPLED_QUERIES, device=device).long()
    expected = exact(q[:, sampled], k, v)
    del q, k, v
    attention = implementation.prepare(device_type, shape[1])
    with TrafficMeter() as meter:  # the first call includes lazy loading and persistent buffers
        out = attention(*inputs)
    with peak_memory(device_type) as peak_bytes:
        attention(*inputs)
    error = 0.0
    if implementation.exact:
        error = (out[:, sampled - own.start].double() - expected).abs().max().item()
    return lambda: attention(*inputs), {
        "error": error,
        "bytes_sent": meter.bytes_sent,
        "collectives": meter.collectives,
        "peak_bytes": peak_bytes(),
    }


def exact(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Attention in float64, one head at a time; ``[B, S, N, H]`` in and out, with equal N."""
    by_head = zip(*(tensor.transpose(1, 2).split(1, dim=1) for tensor in (q, k, v)), strict=True)
    outs = [
        F.scaled_dot_product_attention(q.double(), k.double(), v.double()) for q, k, v in by_head
    ]
    return torch.cat(outs, dim=1).transpose(1, 2)
