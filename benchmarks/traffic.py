"""Counts the collectives and bytes that any library sends through torch.distributed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from longtake.parallel.attention import operator


class TrafficMeter(TorchDispatchMode):
    """Counts collectives, and bytes that this rank sends to other ranks, while active.

    It intercepts operations below torch.distributed's Python functions, on the path of all
    backends, so it works for any library. Bytes sent are counted as follows. All-to-all: the parts
    for other ranks. All-gather: this rank's part, once per other rank. Broadcast and reduction: the
    tensor, once per other rank. Send: the tensor.

    Attributes:
        bytes_sent: Bytes sent to other ranks.
        order: Names of the operations, in call order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes_sent = 0
        self.order: list[str] = []

    @property
    def calls(self) -> Counter[str]:
        """Number of calls by operation, e.g. ``{"alltoall_base_": 2, "send": 1}``."""
        return Counter(self.order)

    @property
    def collectives(self) -> int:
        """Number of calls, excluding receives."""
        return sum(count for name, count in self.calls.items() if not name.startswith("recv"))

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Count the operation if it communicates, then execute it; look into our own operators."""
        if func in _OPAQUE:
            with self:
                return _OPAQUE[func](*args, **(kwargs or {}))
        namespace, _, name = func._schema.name.partition("::")
        if namespace in ("c10d", "_c10d_functional") and name not in _FREE:
            self.order.append(name)
            self.bytes_sent += _SENT[name](*args)
        return func(*args, **(kwargs or {}))


def _size(tensors: torch.Tensor | Sequence[Any]) -> int:
    if isinstance(tensors, torch.Tensor):
        return tensors.numel() * tensors.element_size()
    return sum(map(_size, tensors))


def _all_to_all(sent: torch.Tensor, sizes: Sequence[int], rank: int, world_size: int) -> int:
    sizes = sizes or [len(sent) // world_size] * world_size
    row_size = math.prod(sent.shape[1:]) * sent.element_size()
    return (sum(sizes) - sizes[rank]) * row_size


def _c10d_all_to_all(
    output: torch.Tensor, sent: torch.Tensor, group: Any, _: Any, sizes: Any, *rest: Any
) -> int:
    group = dist.ProcessGroup.unbox(group)
    return _all_to_all(sent, sizes, group.rank(), group.size())


def _c10d_all_gather(output: Any, sent: Any, group: Any, *rest: Any) -> int:
    return _size(sent) * (dist.ProcessGroup.unbox(group).size() - 1)


def _functional_all_to_all(sent: torch.Tensor, _: Any, sizes: Any, group_name: Any) -> int:
    group = dist.distributed_c10d._resolve_process_group(group_name)
    return _all_to_all(sent, sizes, group.rank(), group.size())


def _functional_all_gather(sent: torch.Tensor, group_size: int, group_name: str) -> int:
    return _size(sent) * (group_size - 1)


def _c10d_broadcast(tensors: Sequence[torch.Tensor], group: Any, source: int, *rest: Any) -> int:
    group = dist.ProcessGroup.unbox(group)
    return _size(tensors) * (group.size() - 1) if group.rank() == source else 0


def _c10d_all_reduce(tensors: Sequence[torch.Tensor], group: Any, *rest: Any) -> int:
    return _size(tensors) * (dist.ProcessGroup.unbox(group).size() - 1)


_OPAQUE: dict[Any, Callable[..., Any]] = {
    torch.ops.longtake.usp_attention.default: operator.run,
    torch.ops.longtake.usp_attention_backward.default: operator.run_backward,
}

_FREE = ("wait_tensor", "_wrap_tensor_autograd", "barrier")

_SENT: dict[str, Callable[..., int]] = {
    "alltoall_base_": _c10d_all_to_all,
    "allgather_": _c10d_all_gather,
    "_allgather_base_": _c10d_all_gather,
    "allreduce_": _c10d_all_reduce,
    "broadcast_": _c10d_broadcast,
    "send": lambda tensors, *rest: _size(tensors),
    "recv_": lambda *args: 0,
    "all_to_all_single": _functional_all_to_all,
    "all_gather_into_tensor": _functional_all_gather,
}
