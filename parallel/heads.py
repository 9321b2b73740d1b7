"""Which heads each Ulysses rank computes. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby


def even_ranges(total: int, parts: int, *, start: int = 0, first: int = 0) -> list[range]:
    """Cut ``range(start, start + total)`` in ``parts`` whose lengths differ by one at most.

    The odd ones go to the parts from ``first`` on, round the end.
    """
    base, odd = divmod(total, parts)
    ranges = []
    for part in range(parts):
        stop = start + base + ((part - first) % parts < odd)
        ranges.append(range(start, stop))
        start = stop
    return ranges


@dataclass(frozen=True)
class HeadShards:
    """The heads that each Ulysses rank computes once it holds all tokens of its group.

    Args:
        query: for each Ulysses rank, its query heads.
        kv: for each Ulysses rank, the KV heads that those query heads read. A KV head whose query
            heads stand on several ranks is held by each of them.
        group_size: query heads that read one KV head.
    """

    query: tuple[range, ...]
    kv: tuple[range, ...]
    group_size: int

    @classmethod
    @lru_cache(maxsize=256)
    def even(cls, num_heads: int, num_kv_heads: int, ulysses_degree: int) -> HeadShards:
        """Split the query heads so that counts differ by one at most; zero allowed.

        Args:
            num_heads: query heads, a multiple of ``num_kv_heads``.
            num_kv_heads: KV heads; 1 is multi-query attention.
            ulysses_degree: ranks that share them.
        """
        size = num_heads // num_kv_heads
        query = even_ranges(num_heads, ulysses_degree)
        kv = [range(own.start // size, -(-own.stop // size)) if own else range(0) for own in query]
        return cls(tuple(query), tuple(kv), size)

    def runs(self, rank: int) -> list[tuple[slice, slice]]:
        """Cut one rank's heads where the number of query heads a KV head changes.

        Returns:
            Pairs of (query heads, KV heads), as slices of that rank's own heads. Inside a pair
            every KV head serves as many query heads, as grouped attention kernels want it; three
            pairs at most, one where the split follows the groups.
        """
        own, size = self.query[rank], self.group_size
        readers = [
            min(own.stop, (kv + 1) * size) - max(own.start, kv * size) for kv in self.kv[rank]
        ]
        runs = []
        query_start = kv_start = 0
        for readers_each, same in groupby(readers):
            num_kv = len(list(same))
            query_stop, kv_stop = query_start + readers_each * num_kv, kv_start + num_kv
            runs.append((slice(query_start, query_stop), slice(kv_start, kv_stop)))
            query_start, kv_start = query_stop, kv_stop
        return runs
