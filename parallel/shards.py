"""Who owns which tokens and which heads.

Every rank can work out every other rank's share, so that sizes are never exchanged. Arithmetic
alone, without torch; :mod:`longtake.parallel.split` moves the tensors.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import groupby
from typing import TYPE_CHECKING

from longtake.errors import LayoutError
from longtake.parallel.dims import ParallelDims

if TYPE_CHECKING:
    import torch
    from torch.distributed.device_mesh import DeviceMesh


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
class TokenShards:
    """The token ranges of one sequence that each of its ranks owns, in its own order.

    Args:
        ranges: for each sequence rank (``ring_rank * ulysses_degree + ulysses_rank``), its ranges
            of the whole sequence. Together they hold every token once. A rank may own several
            ranges, or none.

    Raises:
        LayoutError: a token is missing, or owned twice.
    """

    ranges: tuple[tuple[range, ...], ...]

    def __post_init__(self) -> None:
        expected = 0
        for span in sorted((r for own in self.ranges for r in own), key=lambda r: r.start):
            if span.step != 1 or span.start != expected or len(span) == 0:
                raise LayoutError(
                    f"{span} does not go on from token {expected}: the ranges of all ranks must "
                    "hold each token once, with no empty range and no step"
                )
            expected = span.stop

    @classmethod
    def even(cls, num_tokens: int | Sequence[int], dims: ParallelDims) -> TokenShards:
        """Split a sequence evenly over ``dims.ring_degree * dims.ulysses_degree`` ranks.

        Args:
            num_tokens: tokens of the whole sequence; or those of its segments in order (video,
                text), each of which is then split over all ranks. Any number, 0 included.
            dims: the layout.

        The ranks' counts differ by one at most, of every segment and of consecutive segments
        together: odd tokens are dealt round the ranks, each segment going on where the one before
        it stopped.

        Raises:
            LayoutError: ``num_tokens`` is not a whole number of at least 0, or several of them.
        """
        segments = tuple(num_tokens) if isinstance(num_tokens, Sequence) else (num_tokens,)
        for count in segments:
            if isinstance(count, bool) or not isinstance(count, int) or count < 0:
                raise LayoutError(
                    f"num_tokens={num_tokens!r} must be a whole number of at least 0, or one for "
                    "each segment of the sequence: pass e.g. 1024 or (1024, 77)"
                )
        return cls(_deal(segments, dims.sequence_degree))

    @property
    def num_ranks(self) -> int:
        """Ranks that share the sequence."""
        return len(self.ranges)

    @property
    def num_tokens(self) -> int:
        """Tokens of the whole sequence."""
        return sum(self.counts)

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """Tokens of each sequence rank."""
        return tuple(sum(len(span) for span in own) for own in self.ranges)

    def split(self, tensor: torch.Tensor, mesh: DeviceMesh | None, dim: int) -> torch.Tensor:
        """Take this rank's tokens out of a tensor that holds all of them. Nothing is sent.

        Args:
            tensor: ``num_tokens`` long in dimension ``dim``, any shape and dtype otherwise.
            mesh: the grid of ranks; axes ``ring`` and ``ulysses``. None: one process holds all.
            dim: the dimension of the tokens; negative counts from the end.

        Returns:
            The same tensor with this rank's tokens alone: a view where they are one range.

        Raises:
            LayoutError: the mesh has another number of ranks than the shards.
            TensorError: the tensor has no such dimension, or another number of tokens in it.
        """
        from longtake.parallel.split import split

        return split(self, tensor, mesh, dim)

    def gather(self, tensor: torch.Tensor, mesh: DeviceMesh | None, dim: int) -> torch.Tensor:
        """Bring all ranks' tokens together on every rank: the inverse of :meth:`split`.

        Each rank sends its tokens to its Ulysses group, then what that group holds round its ring
        group: every token reaches every rank once, in exact counts.

        Args:
            tensor: this rank's tokens in dimension ``dim``; other dimensions and the dtype are
                the same on all ranks.
            mesh: the grid of ranks; axes ``ring`` and ``ulysses``. None: one process holds all.
            dim: the dimension of the tokens; negative counts from the end.

        Returns:
            The tensor with ``num_tokens`` in dimension ``dim``, in the sequence's order and
            contiguous; on a single rank this may be ``tensor`` itself.

        Raises:
            LayoutError: the mesh has another number of ranks than the shards.
            TensorError: the tensor has no such dimension, has another number of tokens in it, or
                needs a gradient.
            PeerLostError: another rank died or did not answer in time.
        """
        from longtake.parallel.split import gather

        return gather(self, tensor, mesh, dim)

    def segment(self, tokens: range) -> TokenShards:
        """Who owns what of one stretch of the sequence, whose tokens then count from 0.

        Raises:
            LayoutError: the stretch is not inside the sequence.
        """
        if tokens.step != 1 or not 0 <= tokens.start <= tokens.stop <= self.num_tokens:
            raise LayoutError(
                f"{tokens} is not a stretch of {self.num_tokens} tokens: pass a range inside "
                f"range(0, {self.num_tokens})"
            )
        cut = (
            [
                range(max(span.start, tokens.start), min(span.stop, tokens.stop))
                for span in own
                if max(span.start, tokens.start) < min(span.stop, tokens.stop)
            ]
            for own in self.ranges
        )
        return TokenShards(
            tuple(
                tuple(range(span.start - tokens.start, span.stop - tokens.start) for span in own)
                for own in cut
            )
        )

    def stations(self, ulysses_degree: int) -> list[tuple[int, ...]]:
        """Tokens of each rank of each Ulysses group, in the order of the ring."""
        return [
            self.counts[start : start + ulysses_degree]
            for start in range(0, self.num_ranks, ulysses_degree)
        ]


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


def _deal(segments: Iterable[int], num_ranks: int) -> tuple[tuple[range, ...], ...]:
    """Cut each segment evenly; its odd tokens go to the ranks after those that had the last."""
    owned: list[list[range]] = [[] for _ in range(num_ranks)]
    start = 0
    for count in segments:
        spans = even_ranges(count, num_ranks, start=start, first=start % num_ranks)
        for own, span in zip(owned, spans, strict=True):
            if own and own[-1].stop == span.start:
                own[-1] = range(own[-1].start, span.stop)
            elif span:
                own.append(span)
        start += count
    return tuple(tuple(own) for own in owned)
