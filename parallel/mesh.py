"""The grid of ranks as torch's DeviceMesh: built, and asked where a rank stands."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from longtake.errors import LayoutError
from longtake.parallel.dims import AXES, RING_AXIS, ULYSSES_AXIS, ParallelDims
from longtake.parallel.exchange import peers_answer


def build_mesh(
    dims: ParallelDims, device_type: str, ranks: Sequence[int] | None, timeout_s: float
) -> DeviceMesh:
    """See :meth:`ParallelDims.build_mesh`."""
    if not timeout_s > 0:
        raise LayoutError(f"timeout_s={timeout_s!r} must be more than 0 seconds: try 600")
    members = _members(dims, ranks)
    grid = torch.tensor(members, dtype=torch.int).view(dims.degrees)
    timeout = timedelta(seconds=timeout_s)
    made = [_own_group(grid, dim, timeout) for dim in range(grid.ndim)]
    groups = [group for group in made if group is not None]
    if dist.get_rank() not in members:
        return DeviceMesh(device_type, grid, mesh_dim_names=AXES, _init_backend=False)
    if device_type == "cuda":
        _connect(groups)
    return DeviceMesh.from_group(groups, device_type, grid, mesh_dim_names=AXES)


def sequence_rank(mesh: DeviceMesh | None) -> int:
    """This rank's place among the ranks that share its sequence: ``ring_rank * U + ulysses_rank``.

    Without a mesh (None, here and below) one process holds the whole sequence.

    Raises:
        LayoutError: the mesh has no ring or ulysses axis, or this rank is not in it.
    """
    ring_rank, ulysses_rank = axis_rank(mesh, RING_AXIS), axis_rank(mesh, ULYSSES_AXIS)
    return ring_rank * axis_degree(mesh, ULYSSES_AXIS) + ulysses_rank


def axis_degree(mesh: DeviceMesh | None, axis: str) -> int:
    """How many ranks stand along one axis of the mesh."""
    if mesh is None:
        return 1
    dim = _axis_dim(mesh, axis)
    return mesh.size(dim)


def axis_rank(mesh: DeviceMesh | None, axis: str) -> int:
    """This rank's place along one axis of the mesh."""
    if mesh is None:
        return 0
    dim = _axis_dim(mesh, axis)
    coordinate = mesh.get_coordinate()
    if coordinate is None:
        raise LayoutError(
            f"rank {dist.get_rank()} is not among the mesh's ranks {mesh.mesh.flatten().tolist()}: "
            "call this on those ranks only"
        )
    return coordinate[dim]


def _axis_dim(mesh: DeviceMesh, axis: str) -> int:
    names = mesh.mesh_dim_names or () if isinstance(mesh, DeviceMesh) else ()
    if axis not in names:
        raise LayoutError(
            f"mesh={mesh!r} has no {axis!r} axis: build it with ParallelDims.build_mesh"
        )
    return names.index(axis)


def _members(dims: ParallelDims, ranks: Sequence[int] | None) -> list[int]:
    """The checked global ranks of the grid."""
    if not dist.is_initialized():
        raise LayoutError(
            f"a mesh of {dims.world_size} ranks needs a process group, found none: "
            "call torch.distributed.init_process_group first"
        )
    world = list(range(dist.get_world_size()))
    members = world if ranks is None else list(ranks)
    if len(members) != dims.world_size:
        raise LayoutError(dims.misfit(len(members)))
    if members != sorted(set(members) & set(world)):
        raise LayoutError(
            f"ranks={members} must be ascending, without repeats, and in 0..{world[-1]}: "
            f"try ranks={world[: dims.world_size]}"
        )
    return members


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
