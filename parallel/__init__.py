"""Exact attention across ranks. Knows tensors and process groups; has never heard of a model."""

from longtake.parallel.attention import usp_attention
from longtake.parallel.dims import ParallelDims
from longtake.parallel.exchange import Traffic, count_traffic
from longtake.parallel.kernels import KERNELS, Kernel, KernelNeeds, select_kernel
from longtake.parallel.shards import TokenShards
from longtake.parallel.stream import GatherStream
from longtake.parallel.world import World

__all__ = [
    "KERNELS",
    "GatherStream",
    "Kernel",
    "KernelNeeds",
    "ParallelDims",
    "TokenShards",
    "Traffic",
    "World",
    "count_traffic",
    "select_kernel",
    "usp_attention",
]
