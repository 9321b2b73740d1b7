"""Creates the process groups of a layout and the DeviceMesh over them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from longtake.errors import LayoutError
from longtake.parallel.exchange import peer_loss_as_error
from longtake.parallel.mesh import AXES


def build_mesh(
    degrees: tuple[int, int, int], device_type: str, ranks: Sequence[int], timeout_s: float
) -> DeviceMesh:
    """See :meth:`ParallelDims.build_mesh`.

    Args:
        degrees: Sizes of the axes ``cfg``, ``ring`` and ``ulysses``.
        device_type: "cpu" or "cuda".
        ranks: Global ranks of the mesh, as many as the degrees multiply to.
        timeout_s: Timeout of the groups, in seconds.
    """
    if not timeout_s > 0:
        raise LayoutError(f"timeout_s={timeout_s!r} must be more than 0 seconds: try 600")
    members, world = list(ranks), world_ranks()
    if members != sorted(set(members) & set(world)):
        raise LayoutError(
            f"ranks={members} must be ascending, without repeats, and in 0..{world[-1]}: "
            f"try ranks={world[: len(members)]}"
        )
    rank_grid = torch.tensor(members, dtype=torch.int).view(degrees)
    timeout = timedelta(seconds=timeout_s)
    own = [_new_groups(rank_grid, dim, timeout) for dim in range(rank_grid.ndim)]
    groups = [group for group in own if group is not None]
    if dist.get_rank() not in members:
        return DeviceMesh(device_type, rank_grid, mesh_dim_names=AXES, _init_backend=False)
    mesh = DeviceMesh.from_group(groups, device_type, rank_grid, mesh_dim_names=AXES)
    connect_mesh(mesh)
    return mesh


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


def connect_mesh(mesh: DeviceMesh) -> None:
    """Make NCCL connect the ranks of each group of a mesh that ``build_mesh`` did not make.

    NCCL connects a group in its first operation, which all ranks must join. Ranks that have nothing
    to send in a ring would not join it. Collective over the ranks of the mesh. Does nothing but on
    CUDA.

    Args:
        mesh: A mesh with axes ``ring`` and ``ulysses``, such as
            ``world["ring", "ulysses"]`` of a mesh from ``init_device_mesh``.

    Raises:
        PeerLostError: Another rank died or did not call this in time.
    """
    if mesh.device_type != "cuda":
        return
    for group in mesh.get_all_groups():
        with peer_loss_as_error(dist.get_process_group_ranks(group)):
            dist.all_reduce(torch.zeros(1, device="cuda"), group=group)


def _new_groups(rank_grid: torch.Tensor, dim: int, timeout: timedelta) -> dist.ProcessGroup | None:
    """Create all groups along one dimension of the grid; return the one that holds this rank."""
    own = None
    for members in rank_grid.movedim(dim, -1).reshape(-1, rank_grid.shape[dim]).tolist():
        with peer_loss_as_error(members):
            group = dist.new_group(members, timeout=timeout, group_desc=f"longtake:{AXES[dim]}")
        if dist.get_rank() in members:
            own = group
    return own
