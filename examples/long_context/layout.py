"""The layout of a training run: which ranks share a batch, a sequence and a layer."""

from __future__ import annotations

import math
import re
from dataclasses import astuple, dataclass

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from longtake.errors import LayoutError
from longtake.parallel import ParallelDims, connect_mesh

AXES = ("dp", "ring", "ulysses", "tp")
"""Outermost first, as in the USP paper: what is inner sends more and gets faster links."""


@dataclass(frozen=True)
class Layout:
    """Degrees of a layout of ``dp x ring x ulysses x tp`` ranks.

    Args:
        dp: Groups of ranks with different sequences of a batch.
        ring: Ranks of one sequence among which keys and values rotate.
        ulysses: Ranks of one sequence that exchange tokens for heads.
        tp: Ranks that share each layer's heads and columns.
    """

    dp: int = 1
    ring: int = 1
    ulysses: int = 1
    tp: int = 1

    @classmethod
    def parse(cls, text: str) -> Layout:
        """Parse ``DPxRINGxULYSSESxTP``: "1x2x2x1".

        Raises:
            LayoutError: The text has another form.
        """
        if not re.fullmatch(r"[1-9][0-9]{0,4}(x[1-9][0-9]{0,4}){3}", text):
            raise LayoutError(
                f"layout={text!r} must be DPxRINGxULYSSESxTP, four whole numbers of at least 1: "
                "try 1x1x2x1"
            )
        return cls(*map(int, text.split("x")))

    def __str__(self) -> str:
        return "x".join(map(str, astuple(self)))

    @property
    def num_ranks(self) -> int:
        """Number of ranks."""
        return math.prod(astuple(self))

    @property
    def sequence(self) -> ParallelDims:
        """The grid of ranks that share one sequence."""
        return ParallelDims(ring_degree=self.ring, ulysses_degree=self.ulysses)

    def check_ranks(self, num_ranks: int) -> None:
        """Check that the layout has this many ranks.

        Raises:
            LayoutError: It has not.
        """
        if num_ranks != self.num_ranks:
            terms = " x ".join(f"{axis}={n}" for axis, n in zip(AXES, astuple(self), strict=True))
            raise LayoutError(
                f"{terms} needs {self.num_ranks} ranks, got {num_ranks}: start torchrun with "
                f"--nproc-per-node {self.num_ranks}, or try --layout 1x1x{num_ranks}x1"
            )

    def build_meshes(self, device_type: str) -> Meshes:
        """Create the process groups. Collective over all ranks of the default group.

        Args:
            device_type: "cpu" or "cuda".

        Raises:
            LayoutError: The default group has another number of ranks.
        """
        self.check_ranks(dist.get_world_size())
        world = init_device_mesh(device_type, astuple(self), mesh_dim_names=AXES)
        weights = init_device_mesh(
            device_type, (self.num_ranks // self.tp, self.tp), mesh_dim_names=("shard", "tp")
        )
        connect_mesh(world["ring", "ulysses"])
        return Meshes(world["dp"], world["ring", "ulysses"], weights)


@dataclass(frozen=True)
class Meshes:
    """The groups of this rank.

    Attributes:
        data: Axis ``dp``.
        sequence: Axes ``ring`` and ``ulysses``: the ranks of one sequence.
        weights: All ranks as ``shard x tp``. FSDP2 shards weights over dp, ring and ulysses
            jointly: like ranks of data parallelism, the ranks of a sequence hold different tokens
            and need the same weights.
    """

    data: DeviceMesh
    sequence: DeviceMesh
    weights: DeviceMesh
