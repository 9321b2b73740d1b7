"""All ranks of an engine, whatever mesh they form for one video."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from longtake.errors import LayoutError
from longtake.parallel.dims import ParallelDims
from longtake.parallel.exchange import all_reduce_max, broadcast, gather_bytes


@dataclass(frozen=True)
class World:
    """The ranks of an engine, and this rank among them.

    Args:
        device: This rank's device.
        group: Process group over all ranks that takes tensors on ``device`` and on the CPU; None if
            this process is the only rank.
        host_group: Process group over the ranks of this host, which share the reading of weights.
        control: Process group over all ranks that takes CPU tensors and has a longer timeout, to
            wait while another rank computes or writes; ``group`` if None.
        timeout_s: Seconds that a rank waits for a peer in one exchange.
    """

    device: torch.device
    group: dist.ProcessGroup | None = None
    host_group: dist.ProcessGroup | None = None
    control: dist.ProcessGroup | None = None
    timeout_s: float = 600.0
    _meshes: dict[ParallelDims, DeviceMesh] = field(default_factory=dict, repr=False)

    @property
    def size(self) -> int:
        """Number of ranks."""
        return 1 if self.group is None else dist.get_world_size(self.group)

    @property
    def rank(self) -> int:
        """This rank, 0 to ``size - 1``."""
        return 0 if self.group is None else dist.get_rank(self.group)

    @property
    def host_ranks(self) -> list[int]:
        """Global ranks on this rank's host."""
        return [0] if self.host_group is None else dist.get_process_group_ranks(self.host_group)

    def mesh(self, dims: ParallelDims) -> DeviceMesh | None:
        """The mesh of a layout over all ranks, cached; None with a single rank.

        Collective over all ranks.

        Raises:
            LayoutError: The layout has another number of ranks.
        """
        if self.group is None:
            if dims.world_size != 1:
                raise LayoutError(f"{dims} needs {dims.world_size} ranks, got 1: start that many")
            return None
        if dims not in self._meshes:
            mesh = dims.build_mesh(self.device.type, timeout_s=self.timeout_s)
            self._meshes[dims] = mesh
        return self._meshes[dims]

    def flat_mesh(self) -> DeviceMesh:
        """A one-dimensional mesh over all ranks, for sharded weights."""
        assert self.group is not None
        return DeviceMesh.from_group(self.group, self.device.type)

    def any_rank(self, flag: bool) -> bool:
        """Whether the flag is set on any rank; the same result on all ranks."""
        return bool(self.all_reduce_max(int(flag)))

    def all_reduce_max(self, value: int) -> int:
        """The maximum over all ranks of a value of 0 to 255; the same result on all ranks."""
        return value if self.group is None else all_reduce_max(value, self.group)

    def gather_json(self, value: Any) -> list[Any]:
        """Gather every rank's JSON value on all ranks, ordered by rank."""
        if self.group is None:
            return [value]
        return [json.loads(data) for data in gather_bytes(json.dumps(value).encode(), self.group)]

    def broadcast_tensors(
        self, tensors: Mapping[str, torch.Tensor] | None, source: int = 0
    ) -> dict[str, torch.Tensor]:
        """Broadcast named tensors from one rank to all.

        Args:
            tensors: On ``source``: the tensors, on any device. Ignored on other ranks.
            source: The sending rank.

        Returns:
            The tensors, on each rank's own device.
        """
        if self.group is None:
            assert tensors is not None
            return {name: tensor.to(self.device) for name, tensor in tensors.items()}
        mine = tensors if self.rank == source and tensors is not None else {}
        layouts = {
            name: (list(tensor.shape), str(tensor.dtype).removeprefix("torch."))
            for name, tensor in mine.items()
        }
        received = {}
        for name, (shape, dtype) in self.gather_json(layouts)[source].items():
            tensor = torch.empty(shape, dtype=getattr(torch, dtype), device=self.device)
            if name in mine:
                tensor.copy_(mine[name])
            broadcast(tensor, source, self.group)
            received[name] = tensor
        return received
