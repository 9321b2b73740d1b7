"""How many ranks share one video, and the grid that they form."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from longtake.errors import LayoutError
from longtake.parallel.exchange import peers_answer

CFG_AXIS = "cfg"
RING_AXIS = "ring"
ULYSSES_AXIS = "ulysses"

_AXES = (CFG_AXIS, RING_AXIS, ULYSSES_AXIS)


@dataclass(frozen=True, kw_only=True)
class ParallelDims:
    """The degrees of a layout: ``cfg x ring x ulysses`` ranks.

    Any degrees work with any number of tokens and heads. Building one checks the degrees alone;
    no process group is needed before :meth:`build_mesh`.

    Args:
        cfg_degree: branches of classifier-free guidance that are computed side by side.
        ring_degree: ranks round which keys and values travel, in each branch.
        ulysses_degree: ranks that exchange tokens for heads, at each station of the ring.

    Raises:
        LayoutError: a degree is not a whole number of at least 1.

    Source: USP, arXiv 2405.07719, section 3; the idea of one small dataclass from torchtitan.
    """

    cfg_degree: int = 1
    ring_degree: int = 1
    ulysses_degree: int = 1

    def __post_init__(self) -> None:
        for axis, degree in zip(_AXES, self._degrees, strict=True):
            if isinstance(degree, bool) or not isinstance(degree, int) or degree < 1:
                raise LayoutError(
                    f"{axis}_degree={degree!r} must be a whole number of at least 1: "
                    f"leave it out or pass {axis}_degree=1 to not split along that axis"
                )

    @property
    def _degrees(self) -> tuple[int, int, int]:
        return (self.cfg_degree, self.ring_degree, self.ulysses_degree)

    @property
    def world_size(self) -> int:
        """Ranks of the whole grid."""
        return math.prod(self._degrees)

    @property
    def sequence_degree(self) -> int:
        """Ranks over which one sequence of tokens is split: ``ring x ulysses``."""
        return self.ring_degree * self.ulysses_degree

    def build_mesh(
        self,
        device_type: str,
        ranks: Sequence[int] | None = None,
        *,
        timeout_s: float = 600.0,
    ) -> DeviceMesh:
        """Arrange ranks in a grid with axes ``cfg``, ``ring`` and ``ulysses``, the last innermost.

        Called by every rank of the default process group, in the same order as any other groups
        that are made, as with torch's own meshes. A rank outside ``ranks`` gets a mesh whose
        ``get_coordinate()`` is None.

        Args:
            device_type: "cpu" or "cuda".
            ranks: global ranks of the grid, ascending; all ranks of the default group if None.
            timeout_s: seconds for which a rank waits for another in one exchange before it
                raises PeerLostError (on NCCL: before its watchdog ends the process).

        Raises:
            LayoutError: no process group, or not as many ranks as the degrees multiply to.
            PeerLostError: another rank of the grid did not call this in time.
        """
        if not timeout_s > 0:
            raise LayoutError(f"timeout_s={timeout_s!r} must be more than 0 seconds: try 600")
        members = self._members(ranks)
        grid = torch.tensor(members, dtype=torch.int).view(self._degrees)
        timeout = timedelta(seconds=timeout_s)
        made = [_own_group(grid, dim, timeout) for dim in range(grid.ndim)]
        groups = [group for group in made if group is not None]
        if dist.get_rank() not in members:
            return DeviceMesh(device_type, grid, mesh_dim_names=_AXES, _init_backend=False)
        if device_type == "cuda":
            _connect(groups)
        return DeviceMesh.from_group(groups, device_type, grid, mesh_dim_names=_AXES)

    def _members(self, ranks: Sequence[int] | None) -> list[int]:
        """The checked global ranks of the grid."""
        if not dist.is_initialized():
            raise LayoutError(
                f"a mesh of {self.world_size} ranks needs a process group, found none: "
                "call torch.distributed.init_process_group first"
            )
        world = list(range(dist.get_world_size()))
        members = world if ranks is None else list(ranks)
        if len(members) != self.world_size:
            raise LayoutError(self._misfit(len(members)))
        if members != sorted(set(members) & set(world)):
            raise LayoutError(
                f"ranks={members} must be ascending, without repeats, and in 0..{world[-1]}: "
                f"try ranks={world[: self.world_size]}"
            )
        return members

    def _misfit(self, num_ranks: int) -> str:
        asked = " x ".join(
            f"{axis}_degree={degree}"
            for axis, degree in zip(_AXES, self._degrees, strict=True)
            if axis != CFG_AXIS or degree > 1
        )
        smaller = (
            f"ranks={list(range(self.world_size))}, or " if num_ranks > self.world_size else ""
        )
        return (
            f"{asked} needs {self.world_size} ranks, got {num_ranks}: "
            f"try {smaller}{self._nearest(num_ranks)}"
        )

    def _nearest(self, num_ranks: int) -> str:
        """A layout of ``num_ranks`` that keeps as many of the degrees as divide, in words."""
        cfg = math.gcd(self.cfg_degree, num_ranks)
        sequence = num_ranks // cfg
        if sequence % self.ulysses_degree == 0:
            ulysses = self.ulysses_degree
        elif sequence % self.ring_degree == 0:
            ulysses = sequence // self.ring_degree
        else:
            ulysses = sequence
        words = f"ring_degree={sequence // ulysses} x ulysses_degree={ulysses}"
        return f"cfg_degree={cfg} x {words}" if self.cfg_degree > 1 else words


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
            group = dist.new_group(members, timeout=timeout, group_desc=f"longtake:{_AXES[dim]}")
        if dist.get_rank() in members:
            own = group
    return own
