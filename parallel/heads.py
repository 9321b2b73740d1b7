"""Which heads each Ulysses rank computes. Imports no torch.

Legend: N query heads, M KV heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby


def even_ranges(total: int, parts: int, *, start: int = 0, first: int = 0) -> list[range]:
    """Split ``range(start, start + total)`` into parts whose lengths differ by at most one.

    Args:
        total: Length of the range.
        parts: Number of parts.
        start: First element of the range.
        first: Index of the first of the longer parts; they continue cyclically from there.
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
    """The heads that each Ulysses rank computes, over all tokens of its group.

    Args:
        query: Query heads of each Ulysses rank.
        kv: KV heads that those query heads read, by Ulysses rank. A KV head whose query heads are
            on several ranks is held by each of them.
        group_size: Query heads per KV head.
    """

    query: tuple[range, ...]
    kv: tuple[range, ...]
    group_size: int

    @classmethod
    @lru_cache(maxsize=256)
    def even(cls, num_heads: int, num_kv_heads: int, ulysses_degree: int) -> HeadShards:
        """Split the query heads evenly: counts differ by at most one, and may be zero.

        Args:
            num_heads: Number of query heads (N), a multiple of ``num_kv_heads``.
            num_kv_heads: Number of KV heads (M); 1 is multi-query attention.
            ulysses_degree: Number of ranks.
        """
        size = num_heads // num_kv_heads
        query = even_ranges(num_heads, ulysses_degree)
        kv = [range(own.start // size, -(-own.stop // size)) if own else range(0) for own in query]
        return cls(tuple(query), tuple(kv), size)

    def runs(self, rank: int) -> list[tuple[slice, slice]]:
        """Split one rank's heads into runs with a constant number of query heads per KV head.

        Grouped-query attention kernels require this.

        Returns:
            Pairs of (query heads, KV heads), as slices of that rank's heads: at most three, and one
            if the split follows the groups.
        """
        own, size = self.query[rank], self.group_size
        queries_per_kv = [
            min(own.stop, (kv + 1) * size) - max(own.start, kv * size) for kv in self.kv[rank]
        ]
        runs = []
        query_start = kv_start = 0
        for num_queries, run in groupby(queries_per_kv):
            num_kv = len(list(run))
            query_stop, kv_stop = query_start + num_queries * num_kv, kv_start + num_kv
            runs.append((slice(query_start, query_stop), slice(kv_start, kv_stop)))
            query_start, kv_start = query_stop, kv_stop
        return runs
