"""How many ranks share one video, and the grid that they form: arithmetic, without torch."""

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
        for axis, degree in zip(AXES, self.degrees, strict=True):
            if isinstance(degree, bool) or not isinstance(degree, int) or degree < 1:
                raise LayoutError(
                    f"{axis}_degree={degree!r} must be a whole number of at least 1: "
                    f"leave it out or pass {axis}_degree=1 to not split along that axis"
                )

    @classmethod
    def parse(cls, text: str) -> ParallelDims:
        """The layout of a short text, ``RINGxULYSSES`` or ``CFGxRINGxULYSSES``: "2x4", "2x1x4".

        Raises:
            LayoutError: it is no such text.
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
        """A short text that :meth:`parse` reads: ``CFGxRINGxULYSSES``, always three numbers."""
        return "x".join(map(str, self.degrees))

    @property
    def degrees(self) -> tuple[int, int, int]:
        """Of cfg, ring and Ulysses."""
        return (self.cfg_degree, self.ring_degree, self.ulysses_degree)

    @property
    def world_size(self) -> int:
        """Ranks of the whole grid."""
        return math.prod(self.degrees)

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
        from longtake.parallel.build_mesh import build_mesh, world_ranks  # imports torch

        world = world_ranks()
        members = world if ranks is None else list(ranks)
        if len(members) != self.world_size:
            raise LayoutError(self.misfit(len(members)))
        return build_mesh(self.degrees, device_type, members, timeout_s)

    def misfit(self, num_ranks: int) -> str:
        """What to say where there are not so many ranks."""
        asked = " x ".join(
            f"{axis}_degree={degree}"
            for axis, degree in zip(AXES, self.degrees, strict=True)
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
