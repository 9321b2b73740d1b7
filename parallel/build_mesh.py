"""Builds the process groups of a layout, and the DeviceMesh over them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from longtake.errors import LayoutError
from longtake.parallel.exchange import peers_answer
from longtake.parallel.mesh import AXES


def build_mesh(
    degrees: tuple[int, int, int], device_type: str, ranks: Sequence[int], timeout_s: float
) -> DeviceMesh:
    """See :meth:`ParallelDims.build_mesh`.

    Args:
        degrees: The sizes of the axes ``cfg``, ``ring`` and ``ulysses``.
        ranks: As many global ranks as the degrees multiply to.
    """
    if not timeout_s > 0:
        raise LayoutError(f"timeout_s={timeout_s!r} must be more than 0 seconds: try 600")
    members, world = list(ranks), world_ranks()
    if members != sorted(set(members) & set(world)):
        raise LayoutError(
            f"ranks={members} must be ascending, without repeats, and in 0..{world[-1]}: "
            f"try ranks={world[: len(members)]}"
        )
    grid = torch.tensor(members, dtype=torch.int).view(degrees)
    timeout = timedelta(seconds=timeout_s)
    made = [_own_group(grid, dim, timeout) for dim in range(grid.ndim)]
    groups = [group for group in made if group is not None]
    if dist.get_rank() not in members:
        return DeviceMesh(device_type, grid, mesh_dim_names=AXES, _init_backend=False)
    if device_type == "cuda":
        _connect(groups)
    return DeviceMesh.from_group(groups, device_type, grid, mesh_dim_names=AXES)


def world_ranks() -> list[int]:
    """The global ranks of the default process group.

    Raises:
        LayoutError: There is no process group.
    """
    if not dist.is_initialized():
        raise LayoutError(
            "a mesh needs a process group, found none: call torch.distributed.init_process_group "
            "first"
        )
    return list(range(dist.get_world_size()))


def _connect(groups: Sequence[dist.ProcessGroup]) -> None:
    """Make NCCL connect the ranks of each group.

    It does so at a group's first operation, in which all ranks must then take part: in a ring where
    some have nothing to send, they would not.
    """
    for group in groups:
        with peers_answer(dist.get_process_group_ranks(group)):
            dist.all_reduce(torch.zeros(1, device="cuda"), group=group)


def _own_group(grid: torch.Tensor, dim: int, timeout: timedelta) -> dist.ProcessGroup | None:
    """Make all groups along one dimension of the grid; return the one that this rank is in."""
    own = None
    for members in grid.movedim(dim, -1).reshape(-1, grid.shape[dim]).tolist():
        with peers_answer(members):
            group = dist.new_group(members, timeout=timeout, group_desc=f"longtake:{AXES[dim]}")
        if dist.get_rank() in members:
            own = group
    return own
