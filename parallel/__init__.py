"""Exact attention across ranks. Knows tensors and process groups; has never heard of a model."""

from longtake.parallel.attention import usp_attention
from longtake.parallel.dims import ParallelDims
from longtake.parallel.kernels import KERNELS, Kernel, KernelNeeds, select_kernel
from longtake.parallel.shards import TokenShards

__all__ = [
    "KERNELS",
    "Kernel",
    "KernelNeeds",
    "ParallelDims",
    "TokenShards",
    "select_kernel",
    "usp_attention",
]
