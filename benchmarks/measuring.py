"""Per-rank part of the attention benchmark: prepares one contestant, then runs it on request."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F

from benchmarks.contestants import BY_NAME, Attention
from benchmarks.traffic import TrafficMeter
from longtake.engine.memory_use import peak_resident_bytes, resident_bytes
from longtake.parallel import ParallelDims, TokenShards

Shape = tuple[int, int, int, int]
"""Batch size, tokens of the whole sequence, number of heads, head size."""

_SAMPLED_QUERIES = 16


class _Prepared:
    """State of a rank between ``prepare`` and ``run_once``."""

    attention: Attention
    inputs: list[torch.Tensor]


def prepare(name: str, shape: Shape, dtype: torch.dtype, device_type: str) -> dict[str, float]:
    """Create the inputs and measure error, traffic and memory of a call. Runs on each rank.

    Returns:
        ``error``, the largest difference from attention in float64 over some of this rank's
        queries; ``bytes_sent``, ``collectives`` and ``peak_bytes`` of one call.
    """
    dims = ParallelDims(ulysses_degree=dist.get_world_size())
    own = TokenShards.even(shape[1], dims).ranges[dist.get_rank()][0]
    generator = torch.Generator().manual_seed(0)
    device = torch.device("cuda", dist.get_rank()) if device_type == "cuda" else torch.device("cpu")
    q, k, v = (torch.randn(shape, generator=generator).to(device, dtype) for _ in range(3))
    _Prepared.inputs = [tensor[:, own.start : own.stop].clone() for tensor in (q, k, v)]
    sampled = torch.linspace(own.start, own.stop - 1, _SAMPLED_QUERIES, device=device).long()
    expected = exact(q[:, sampled], k, v)
    del q, k, v
    with torch.inference_mode():
        _Prepared.attention = BY_NAME[name].prepare(device_type, shape[1])
        with TrafficMeter() as meter:  # the first call includes lazy loading and persistent buffers
            out = _Prepared.attention(*_Prepared.inputs)
        with peak_memory(device_type) as peak_bytes:
            _Prepared.attention(*_Prepared.inputs)
    error = 0.0
    if BY_NAME[name].exact:
        error = (out[:, sampled - own.start].double() - expected).abs().max().item()
    return {
        "error": error,
        "bytes_sent": meter.bytes_sent,
        "collectives": meter.collectives,
        "peak_bytes": peak_bytes(),
    }


def run_once(device_type: str) -> float:
    """Time of one call in seconds, after a barrier. Runs on each rank."""
    with torch.inference_mode():
        dist.barrier()
        begun = time.perf_counter()
        _Prepared.attention(*_Prepared.inputs)
        if device_type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - begun


def exact(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Attention in float64, one head at a time; ``[B, S, N, H]`` in and out, with equal N."""
    by_head = zip(*(tensor.transpose(1, 2).split(1, dim=1) for tensor in (q, k, v)), strict=True)
    outs = [
        F.scaled_dot_product_attention(one.double(), k.double(), v.double())
        for one, k, v in by_head
    ]
    return torch.cat(outs, dim=1).transpose(1, 2)


@contextmanager
def peak_memory(device_type: str) -> Iterator[Callable[[], int]]:
    """Measure peak memory inside the context, in bytes above the memory in use on entry."""
    if device_type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        yield lambda: torch.cuda.max_memory_allocated() - before
        return
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before, peak = resident_bytes(), 0
    yield lambda: peak - before
    peak = peak_resident_bytes()
