"""How long exchanges take on links that are shared.

Devices are the leaves of a tree: each level of :class:`longtake.configs.hardware.Link` groups them
by ``shared_by``, and a group has one way out and one way in. What goes from i to j passes the ways
of every group, up to the level that spans both, which holds the one and not the other. An exchange
takes as long as its busiest way. Two neighbours on one PCIe switch so have a port each to
themselves, while all-to-alls of eight crowd on the link between the sockets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from longtake.configs.hardware import Hardware

Transfers = npt.NDArray[np.float64] | Sequence[tuple[int, int, float]]
"""Rows of who sends, who receives, bytes."""


@dataclass(frozen=True)
class Network:
    """The links of some hardware."""

    hardware: Hardware

    def seconds(self, transfers: Transfers) -> float:
        """How long transfers take that are begun at one time."""
        rows = np.asarray(transfers, dtype=np.float64).reshape(-1, 3)
        rows = rows[(rows[:, 0] != rows[:, 1]) & (rows[:, 2] > 0)]
        longest, latency = 0.0, 0.0
        for link in self.hardware.links:
            if len(rows) == 0:
                break
            latency = link.latency_s.value
            busiest = max(_busiest(rows, side, link.shared_by) for side in (0, 1))
            longest = max(longest, busiest / link.bytes_per_s.value)
            if link.spans is not None:  # what goes further passes the next level, too
                rows = rows[rows[:, 0] // link.spans != rows[:, 1] // link.spans]
        return longest + latency


def ring_transfers(ranks: int, num_bytes: float) -> Transfers:
    """Each rank sends so many bytes to the next, the last to the first."""
    return [(rank, (rank + 1) % ranks, num_bytes) for rank in range(ranks)]


def _busiest(rows: npt.NDArray[np.float64], side: int, shared_by: int) -> float:
    """The most bytes that pass one group's way out (side 0) or in (side 1)."""
    groups = (rows[:, :2] // shared_by).astype(np.int64)
    crossing = groups[:, 0] != groups[:, 1]
    if not crossing.any():
        return 0.0
    loads = np.bincount(groups[crossing, side], weights=rows[crossing, 2])
    return float(loads.max())
