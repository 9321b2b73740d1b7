"""The degrees of a layout: the grid of ranks that share one video. Imports no torch."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from longtake.errors import LayoutError
from longtake.parallel.mesh import AXES, CFG_AXIS

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

_NOTATION = re.compile(r"[1-9][0-9]{0,4}(x[1-9][0-9]{0,4}){1,2}")


@dataclass(frozen=True, kw_only=True)
class ParallelDims:
    """The degrees of a layout of ``cfg x ring x ulysses`` ranks.

    Any degrees work with any number of tokens and heads. The constructor checks the degrees alone;
    a process group is needed only by :meth:`build_mesh`.

    Args:
        cfg_degree: Branches of classifier-free guidance computed in parallel.
        ring_degree: Ranks of one branch among which keys and values rotate.
        ulysses_degree: Ranks of one ring position that exchange tokens for heads.

    Raises:
        LayoutError: A degree is not a whole number of at least 1.

    Source: USP, arXiv 2405.07719, section 3; the small validating dataclass is torchtitan's idea.
    """

    cfg_degree: int = 1
    ring_degree: int = 1
    ulysses_degree: int = 1

    def __post_init__(self) -> None:
        for axis, degree in zip(AXES, self.degrees, strict=True):
            if isinstance(degree, bool) or not isinstance(degree, int) or degree < 1:
                raise LayoutError(
                    f"{axis}_degree={degree!r} must be a whole number of at least 1: "
                    f"leave it out or pass {axis}_degree=1 to leave that axis unsplit"
                )

    @classmethod
    def parse(cls, text: str) -> ParallelDims:
        """Parse ``RINGxULYSSES`` or ``CFGxRINGxULYSSES``: "2x4", "2x1x4".

        Raises:
            LayoutError: The text has another form.
        """
        if not _NOTATION.fullmatch(text):
            raise LayoutError(
                f"layout={text!r} must be RINGxULYSSES or CFGxRINGxULYSSES, whole numbers of at "
                "least 1: try 1x2"
            )
        *cfg, ring, ulysses = map(int, text.split("x"))
        return cls(cfg_degree=cfg[0] if cfg else 1, ring_degree=ring, ulysses_degree=ulysses)

    @property
    def name(self) -> str:
        """``CFGxRINGxULYSSES``, always three numbers; :meth:`parse` reads it."""
        return "x".join(map(str, self.degrees))

    @property
    def degrees(self) -> tuple[int, int, int]:
        """The cfg, ring and Ulysses degrees."""
        return (self.cfg_degree, self.ring_degree, self.ulysses_degree)

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return math.prod(self.degrees)

    @property
    def sequence_degree(self) -> int:
        """Number of ranks that one sequence is split over: ``ring x ulysses``."""
        return self.ring_degree * self.ulysses_degree

    def build_mesh(
        self,
        device_type: str,
        ranks: Sequence[int] | None = None,
        *,
        timeout_s: float = 600.0,
    ) -> DeviceMesh:
        """Build a DeviceMesh with axes ``cfg``, ``ring`` and ``ulysses``, the last one innermost.

        Collective: every rank of the default process group calls this, in the same order as it
        creates other groups. A rank outside ``ranks`` gets a mesh whose ``get_coordinate()`` is
        None.

        Args:
            device_type: "cpu" or "cuda".
            ranks: Global ranks of the mesh, ascending; all ranks of the default group if None.
            timeout_s: Seconds that a rank waits for a peer in one exchange before it raises
                PeerLostError; with NCCL, before its watchdog ends the process.

        Raises:
            LayoutError: No process group, or a number of ranks other than ``world_size``.
            PeerLostError: Another rank of the mesh did not call this in time.
        """
        from longtake.parallel.build_mesh import build_mesh, world_ranks  # imports torch

        world = world_ranks()
        members = world if ranks is None else list(ranks)
        if len(members) != self.world_size:
            raise LayoutError(self._rank_count_error(len(members)))
        return build_mesh(self.degrees, device_type, members, timeout_s)

    def _rank_count_error(self, num_ranks: int) -> str:
        """The message for a number of ranks that does not fit, with what would work."""
        degrees = " x ".join(
            f"{axis}_degree={degree}"
            for axis, degree in zip(AXES, self.degrees, strict=True)
            if axis != CFG_AXIS or degree > 1
        )
        fewer = f"ranks={list(range(self.world_size))}, or " if num_ranks > self.world_size else ""
        return (
            f"{degrees} needs {self.world_size} ranks, got {num_ranks}: "
            f"try {fewer}{self._closest_degrees(num_ranks)}"
        )

    def _closest_degrees(self, num_ranks: int) -> str:
        """Degrees for ``num_ranks``, of which as many as possible are unchanged."""
        cfg = math.gcd(self.cfg_degree, num_ranks)
        sequence = num_ranks // cfg
        if sequence % self.ulysses_degree == 0:
            ulysses = self.ulysses_degree
        elif sequence % self.ring_degree == 0:
            ulysses = sequence // self.ring_degree
        else:
            ulysses = sequence
        degrees = f"ring_degree={sequence // ulysses} x ulysses_degree={ulysses}"
        return f"cfg_degree={cfg} x {degrees}" if self.cfg_degree > 1 else degrees
