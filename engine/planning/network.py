"""Predicts the duration of exchanges over shared links.

Devices are the leaves of a tree. Each level of :class:`longtake.configs.hardware.Link` groups them
by ``shared_by``, and each group has one outgoing and one incoming link. A transfer from i to j
crosses the links of every group, up to the level that spans both, that contains one of them but not
the other. An exchange takes as long as its busiest link. Two neighbors on one PCIe switch thus have
a port each, while all-to-alls of eight devices contend for the link between the sockets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from longtake.configs.hardware import Hardware

Transfers = npt.NDArray[np.float64] | Sequence[tuple[int, int, float]]
"""Rows of sender, receiver, bytes."""


@dataclass(frozen=True)
class Network:
    """The links of a hardware profile."""

    hardware: Hardware

    def seconds(self, transfers: Transfers) -> float:
        """The duration of transfers that start together."""
        rows = np.asarray(transfers, dtype=np.float64).reshape(-1, 3)
        rows = rows[(rows[:, 0] != rows[:, 1]) & (rows[:, 2] > 0)]
        longest, latency = 0.0, 0.0
        for link in self.hardware.links:
            if len(rows) == 0:
                break
            latency = link.latency_s.value
            busiest = max(_busiest(rows, side, link.shared_by) for side in (0, 1))
            longest = max(longest, busiest / link.bytes_per_s.value)
            if link.spans is not None:  # longer transfers cross the next level too
                rows = rows[rows[:, 0] // link.spans != rows[:, 1] // link.spans]
        return longest + latency


def ring_transfers(ranks: int, num_bytes: float) -> Transfers:
    """Transfers of a number of bytes from each rank to the next, and from the last to the first."""
    return [(rank, (rank + 1) % ranks, num_bytes) for rank in range(ranks)]


def _busiest(rows: npt.NDArray[np.float64], side: int, shared_by: int) -> float:
    """The most bytes on the outgoing (side 0) or incoming (side 1) link of one group."""
    groups = (rows[:, :2] // shared_by).astype(np.int64)
    crossing = groups[:, 0] != groups[:, 1]
    if not crossing.any():
        return 0.0
    loads = np.bincount(groups[crossing, side], weights=rows[crossing, 2])
    return float(loads.max())
