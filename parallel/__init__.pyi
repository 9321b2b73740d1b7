# What the package exports. lazy_loader and type checkers both read this file.
from .attention.usp_attention import usp_attention
from .build_mesh import connect_mesh
from .dims import ParallelDims
from .exchange import Traffic, count_traffic
from .kernels.kernel import Kernel, KernelNeeds
from .kernels.table import KERNELS, select_kernel
from .shards import TokenShards
from .stream import GatherStream
from .world import World

__all__ = [
    "KERNELS",
    "GatherStream",
    "Kernel",
    "KernelNeeds",
    "ParallelDims",
    "TokenShards",
    "Traffic",
    "World",
    "connect_mesh",
    "count_traffic",
    "select_kernel",
    "usp_attention",
]
