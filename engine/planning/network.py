"""How long exchanges take on links that are shared.

Devices are the leaves of a tree: each level of :class:`longtake.configs.hardware.Link` groups them
by ``shared_by``, and a group has one way out and one way in. What goes from i to j passes the ways
of every group, up to the level that spans both, which holds the one and not the other. An exchange
takes as long as its busiest way. Two neighbours on one PCIe switch so have a port each to
themselves, while all-to-alls of eight crowd on the link between the sockets.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from longtake.configs.hardware import Hardware, Link

Transfer = tuple[int, int, float]
"""Who sends, who receives, bytes."""


@dataclass(frozen=True)
class Network:
    """The links of some hardware."""

    hardware: Hardware

    def seconds(self, transfers: Iterable[Transfer]) -> float:
        """How long transfers take that are begun at one time."""
        loads: dict[tuple[int, bool, int], float] = defaultdict(float)
        outermost = -1
        for source, target, size in transfers:
            if source == target or size == 0:
                continue
            crossed = self._levels_between(source, target)
            outermost = max(outermost, len(crossed) - 1)
            for level, link in enumerate(crossed):
                sender, receiver = source // link.shared_by, target // link.shared_by
                if sender != receiver:
                    loads[level, True, sender] += size
                    loads[level, False, receiver] += size
        if outermost < 0:
            return 0.0
        links = self.hardware.links
        busiest = max(
            size / links[level].bytes_per_s.value for (level, _, _), size in loads.items()
        )
        return busiest + links[outermost].latency_s.value

    def _levels_between(self, source: int, target: int) -> tuple[Link, ...]:
        """The links from the innermost to the one that spans both."""
        for level, spans in self._spans:
            if spans is None or source // spans == target // spans:
                return self.hardware.links[: level + 1]
        raise AssertionError("the last link spans all")

    @cached_property
    def _spans(self) -> list[tuple[int, int | None]]:
        return [(level, link.spans) for level, link in enumerate(self.hardware.links)]
