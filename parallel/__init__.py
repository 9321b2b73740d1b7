"""Exact attention across ranks. Knows tensors and process groups; has never heard of a model.

What is named here is imported on demand: the arithmetic of layouts (``ParallelDims``,
``TokenShards``) needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

_MODULES = {
    "KERNELS": "kernels",
    "GatherStream": "stream",
    "Kernel": "kernels",
    "KernelNeeds": "kernels",
    "ParallelDims": "dims",
    "TokenShards": "shards",
    "Traffic": "exchange",
    "World": "world",
    "count_traffic": "exchange",
    "select_kernel": "kernels",
    "usp_attention": "attention",
}


def __dir__() -> list[str]:
    """What there is, for ``help`` and completion."""
    return sorted({*globals(), *__all__})


if not TYPE_CHECKING:  # a type checker would take any name for one that is there

    def __getattr__(name: str) -> Any:
        """Import what is asked for from the module that holds it."""
        if name in _MODULES:
            return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
