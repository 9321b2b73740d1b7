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
    @lru_cache(maxsize=256)
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
        forwards, backwards = (
            sum(
                self._held(rank, step, direction)
                for rank in range(self.degree)
                for step in range(1, self.degree)
            )
            for direction in (1, -1)
        )
        return -1 if backwards < forwards else 1

    def owner(self, rank: int, step: int) -> int:
        """The rank whose block a rank holds at a step: its own at step 0."""
        return (rank - step * self.direction) % self.degree

    def visitor(self, rank: int, step: int) -> int:
        """The rank that holds a rank's block at a step."""
        return (rank + step * self.direction) % self.degree

    def held(self, rank: int, step: int) -> int:
        """Tokens of the block that a rank holds at a step; none after the last step."""
        if step == 0:
            return sum(map(len, self.keys[rank]))
        return 0 if step >= self.degree else self._held(rank, step, self.direction)

    def tiles(self, rank: int, step: int) -> tuple[Tile, ...]:
        """The tiles of a rank's queries and the block that it holds at a step."""
        return self._tiles(rank, self.owner(rank, step))

    def seen(self, rank: int, owner: int) -> int:
        """Tokens of a block up to the last that a rank's queries see."""
        return self._seen[rank][owner]

    def num_scores(self, rank: int) -> int:
        """Pairs of a query of a rank and a key that it sees: the work of one head."""
        return sum(
            tile.num_scores for owner in range(self.degree) for tile in self._tiles(rank, owner)
        )

    @cached_property
    def _seen(self) -> list[list[int]]:
        ranks = range(self.degree)
        return [
            [
                max((tile.keys.stop for tile in self._tiles(rank, owner)), default=0)
                for owner in ranks
            ]
            for rank in ranks
        ]

    def _tiles(self, rank: int, owner: int) -> tuple[Tile, ...]:
        return self.mask.tiles(self.queries[rank], self.keys[owner])

    def _held(self, rank: int, step: int, direction: int) -> int:
        owner = (rank - step * direction) % self.degree
        later = [(owner + at * direction) % self.degree for at in range(step, self.degree)]
        if not self.mask.hides:
            return sum(map(len, self.keys[owner]))
        return max(self.seen(visitor, owner) for visitor in later)
