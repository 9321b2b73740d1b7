"""Which block of keys each rank of a ring holds at each step, and how much of it. Imports no torch.

A block travels from rank to rank. A hop sends the part of it that a later rank on its way sees: a
prefix, since rows ascend by position and a causal mask hides the last ones. The ring turns in the
direction that sends less: zigzag blocks travel towards the earlier ranks, which need all of them
first; contiguous blocks travel towards the later ones, and stop after the last.

Without a mask every rank sees every block whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate

from longtake.parallel.attention.mask import Mask, Spans, Tile


@dataclass(frozen=True)
class RingSchedule:
    """The blocks of a ring.

    Args:
        mask: The mask.
        queries: Positions of each ring rank's queries, by row.
        keys: Positions of each ring rank's keys, by row.
    """

    mask: Mask
    queries: tuple[Spans, ...]
    keys: tuple[Spans, ...]

    @classmethod
    @lru_cache(maxsize=32)
    def of(cls, mask: Mask, queries: tuple[Spans, ...], keys: tuple[Spans, ...]) -> RingSchedule:
        """The schedule, computed once."""
        return cls(mask, queries, keys)

    @property
    def degree(self) -> int:
        """Number of ranks."""
        return len(self.queries)

    @cached_property
    def direction(self) -> int:
        """1 if blocks travel to the next rank, -1 if to the previous one."""
        forwards, backwards = (sum(map(sum, self._parts(direction))) for direction in (1, -1))
        return -1 if backwards < forwards else 1

    def owner(self, rank: int, step: int) -> int:
        """The rank whose block a rank holds at a step: its own at step 0."""
        return (rank - step * self.direction) % self.degree

    def visitor(self, rank: int, step: int) -> int:
        """The rank that holds a rank's block at a step."""
        return (rank + step * self.direction) % self.degree

    def held(self, rank: int, step: int) -> int:
        """Tokens of the block that a rank holds at a step; none after the last step."""
        return self._held[self.owner(rank, step)][step] if step < self.degree else 0

    def tiles(self, rank: int, step: int) -> tuple[Tile, ...]:
        """The tiles of a rank's queries and the block that it holds at a step."""
        owner = self.owner(rank, step)
        if (rank, owner) not in self._known_tiles:
            tiles = self.mask.tiles(self.queries[rank], self.keys[owner])
            self._known_tiles[rank, owner] = tiles
        return self._known_tiles[rank, owner]

    def seen(self, rank: int, owner: int) -> int:
        """Tokens of a block up to the last that a rank's queries see."""
        return self._seen[rank][owner]

    def num_scores(self, rank: int) -> int:
        """Pairs of a query of a rank and a key that it sees: the work of one head."""
        return sum(
            tile.num_scores for step in range(self.degree) for tile in self.tiles(rank, step)
        )

    @cached_property
    def _known_tiles(self) -> dict[tuple[int, int], tuple[Tile, ...]]:
        """Tiles that were asked for, by rank and owner: those of one rank are enough for a call."""
        return {}

    @cached_property
    def _seen(self) -> tuple[tuple[int, ...], ...]:
        """Tokens of each owner's block up to the last that each rank sees, by rank and owner."""
        return tuple(
            tuple(
                max((tile.keys.stop for tile in self.mask.tiles(queries, keys)), default=0)
                for keys in self.keys
            )
            for queries in self.queries
        )

    @cached_property
    def _held(self) -> tuple[tuple[int, ...], ...]:
        """Tokens of each block that are held at each step, by owner and step."""
        return self._parts(self.direction)

    def _parts(self, direction: int) -> tuple[tuple[int, ...], ...]:
        """Tokens of each block that are held at each step if it travels in a direction.

        At step 0 the owner holds all; then a rank holds what it or a later one on the way sees.
        """
        parts = []
        for owner, keys in enumerate(self.keys):
            whole = sum(map(len, keys))
            visitors = [(owner + step * direction) % self.degree for step in range(self.degree)]
            seen = [
                self._seen[visitor][owner] if self.mask.hides else whole for visitor in visitors
            ]
            later = list(accumulate(reversed(seen[1:]), max))
            parts.append((whole, *reversed(later)))
        return tuple(parts)
