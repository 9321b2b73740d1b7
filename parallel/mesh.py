"""The axes of the rank mesh, and a rank's position along them. Imports no torch.

Throughout, ``mesh=None`` means one process that holds the whole sequence.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from longtake.errors import LayoutError

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

CFG_AXIS = "cfg"
RING_AXIS = "ring"
ULYSSES_AXIS = "ulysses"

AXES = (CFG_AXIS, RING_AXIS, ULYSSES_AXIS)
"""Outermost first: neighboring ranks share a Ulysses group."""


def sequence_rank(mesh: DeviceMesh | None) -> int:
    """This rank's index in its sequence: ``ring_rank * ulysses_degree + ulysses_rank``.

    Raises:
        LayoutError: The mesh has no ring or ulysses axis, or this rank is not in it.
    """
    ring_rank, ulysses_rank = axis_rank(mesh, RING_AXIS), axis_rank(mesh, ULYSSES_AXIS)
    return ring_rank * axis_degree(mesh, ULYSSES_AXIS) + ulysses_rank


def axis_degree(mesh: DeviceMesh | None, axis: str) -> int:
    """Number of ranks along an axis.

    Raises:
        LayoutError: The mesh has no such axis.
    """
    return 1 if mesh is None else mesh.size(_axis_dim(mesh, axis))


def axis_rank(mesh: DeviceMesh | None, axis: str) -> int:
    """This rank's coordinate along an axis.

    Raises:
        LayoutError: The mesh has no such axis, or this rank is not in it.
    """
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
