"""The axes of the rank mesh, and a rank's place along them. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from longtake.errors import LayoutError

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

CFG_AXIS = "cfg"
RING_AXIS = "ring"
ULYSSES_AXIS = "ulysses"

AXES = (CFG_AXIS, RING_AXIS, ULYSSES_AXIS)


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
        from torch.distributed import get_rank

        raise LayoutError(
            f"rank {get_rank()} is not among the mesh's ranks {mesh.mesh.flatten().tolist()}: "
            "call this on those ranks only"
        )
    return coordinate[dim]


def _axis_dim(mesh: DeviceMesh, axis: str) -> int:
    names = getattr(mesh, "mesh_dim_names", None) or ()
    if axis not in names:
        raise LayoutError(
            f"mesh={mesh!r} has no {axis!r} axis: build it with ParallelDims.build_mesh"
        )
    return int(names.index(axis))
