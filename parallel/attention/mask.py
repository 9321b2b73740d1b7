"""Which keys each query sees, as rectangles and causal squares of rows. Imports no torch.

Kernels know no positions: a rank's queries and a block of keys are rows to them, and a causal mask
says that query i sees keys 0 to i. So a block is attended to in tiles, each of which a kernel can
compute, and tiles without a visible key do not exist. With zigzag shards there is one tile for each
block of the ring.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise

from longtake.errors import TensorError

Spans = tuple[range, ...]
"""Ranges of positions in the whole sequence."""


@dataclass(frozen=True)
class Tile:
    """Queries and keys that one call of a kernel attends to.

    Attributes:
        queries: Rows of the queries.
        keys: Rows of the keys.
        causal: Whether query i sees keys 0 to i only; there are as many queries as keys.
    """

    queries: slice
    keys: slice
    causal: bool

    @property
    def num_scores(self) -> int:
        """Pairs of a query and a key that it sees."""
        num_queries = self.queries.stop - self.queries.start
        if self.causal:
            return int(num_queries * (num_queries + 1) // 2)
        return int(num_queries * (self.keys.stop - self.keys.start))


@dataclass(frozen=True)
class Mask:
    """The keys that a query sees, by positions in the whole sequence.

    Args:
        causal: Whether a query sees the keys up to its own position only.
        document_ends: Ends of the documents packed in the sequence; a query sees its own document
            only. Empty for a single document.
    """

    causal: bool = False
    document_ends: tuple[int, ...] = ()

    @classmethod
    def of(cls, causal: bool, document_lengths: Sequence[int] | None, num_tokens: int) -> Mask:
        """The mask of a call.

        Args:
            causal: Whether a query sees the keys up to its own position only.
            document_lengths: Lengths of the packed documents; None for a single one.
            num_tokens: Length of the sequence.

        Raises:
            TensorError: ``causal`` is not a bool, a length is not a whole number of at least 1, or
                the lengths do not add up to the sequence.
        """
        if not isinstance(causal, bool):
            raise TensorError(f"causal={causal!r} must be True or False")
        if document_lengths is not None and not isinstance(document_lengths, Sequence):
            raise TensorError(
                f"document_lengths={document_lengths!r} must be a list of whole numbers: the "
                "length of each document"
            )
        lengths = tuple(document_lengths or ())
        for length in lengths:
            if isinstance(length, bool) or not isinstance(length, int) or length < 1:
                raise TensorError(
                    f"document_lengths has {length!r}: each must be a whole number of at least 1"
                )
        if document_lengths is not None and sum(lengths) != num_tokens:
            raise TensorError(
                f"document_lengths add up to {sum(lengths)} tokens, the sequence has {num_tokens}: "
                "pass the length of each document"
            )
        return cls(causal, tuple(accumulate(lengths)) if len(lengths) > 1 else ())

    @property
    def hides(self) -> bool:
        """Whether there are keys that a query does not see."""
        return self.causal or bool(self.document_ends)

    def tiles(self, queries: Spans, keys: Spans) -> tuple[Tile, ...]:
        """The tiles of a rank's queries and a block of keys.

        Args:
            queries: Positions of the queries by row; ascending if the mask hides anything.
            keys: Positions of the keys, likewise.
        """
        num_queries, num_keys = sum(map(len, queries)), sum(map(len, keys))
        if not num_queries or not num_keys:
            return ()
        if not self.hides:
            return (Tile(slice(0, num_queries), slice(0, num_keys), False),)
        return tuple(_merged(list(_pieces(self, queries, keys))))

    def document(self, position: int) -> range:
        """The positions of the document that a token is in."""
        if not self.document_ends:
            return range(1 << 62)
        at = bisect_right(self.document_ends, position)
        return range(self.document_ends[at - 1] if at else 0, self.document_ends[at])


@dataclass(frozen=True)
class _Piece:
    """Queries that see the same earlier keys, and themselves or not.

    Attributes:
        queries: Rows of the queries.
        earlier: Rows of the keys that all of them see.
        itself: Whether the keys that follow are these queries' own, seen causally.
    """

    queries: range
    earlier: range
    itself: bool

    def continued_by(self, other: _Piece) -> bool:
        """Whether the next piece is of the same tiles."""
        if self.itself != other.itself:
            return False
        if not self.itself:
            return self.earlier == other.earlier
        seen = range(self.earlier.start, self.earlier.stop + len(self.queries))
        return other.earlier == seen


def _pieces(mask: Mask, queries: Spans, keys: Spans) -> Iterator[_Piece]:
    """Cut the queries where documents and spans of keys begin and end."""
    edges = {edge for span in keys for edge in (span.start, span.stop)}
    cuts = sorted({0, *edges, *mask.document_ends})
    row, row_of = 0, _KeyRows(keys)
    for span in queries:
        inner = cuts[bisect_right(cuts, span.start) : bisect_left(cuts, span.stop)]
        for start, stop in pairwise([span.start, *inner, span.stop]):
            document, rows = mask.document(start), range(row, row + stop - start)
            last = start if mask.causal else document.stop
            earlier = range(row_of(document.start), row_of(last))
            itself = mask.causal and row_of(stop) > earlier.stop
            yield _Piece(rows, earlier, itself)
            row = rows.stop


class _KeyRows:
    """The row of the first key at a position or after it; the number of keys if there is none.

    Args:
        keys: Positions of the keys by row, ascending.
    """

    def __init__(self, keys: Spans) -> None:
        self._keys = keys
        self._starts = [span.start for span in keys]
        self._rows = list(accumulate(map(len, keys), initial=0))

    def __call__(self, position: int) -> int:
        at = bisect_right(self._starts, position) - 1
        if at < 0:
            return 0
        return self._rows[at] + min(position - self._starts[at], len(self._keys[at]))


def _merged(pieces: list[_Piece]) -> Iterator[Tile]:
    """As few tiles as possible: of each run of pieces a rectangle and a square."""
    start = 0
    for end in range(1, len(pieces) + 1):
        if end < len(pieces) and pieces[end - 1].continued_by(pieces[end]):
            continue
        first, last = pieces[start], pieces[end - 1]
        queries = slice(first.queries.start, last.queries.stop)
        if first.earlier:
            yield Tile(queries, slice(first.earlier.start, first.earlier.stop), False)
        if first.itself:
            square = slice(first.earlier.stop, last.earlier.stop + len(last.queries))
            yield Tile(queries, square, True)
        start = end


@dataclass(frozen=True)
class TokenOrder:
    """The order of a rank's rows of tokens: as it holds them, and as its kernels take them.

    Args:
        held: Positions as they are held.
        ascends: Whether kernels take them in ascending order; otherwise as they are held.
    """

    held: Spans
    ascends: bool

    @property
    def sorted(self) -> Spans:
        """Positions as kernels take them, neighboring ranges joined."""
        joined: list[range] = []
        for at in self._taken:
            span = self.held[at]
            if joined and joined[-1].stop == span.start:
                joined[-1] = range(joined[-1].start, span.stop)
            else:
                joined.append(span)
        return tuple(joined)

    @cached_property
    def to_ascending(self) -> tuple[slice, ...]:
        """Slices of the rows as held, as kernels take them; none if the order is the same."""
        if self._taken == list(range(len(self.held))):
            return ()
        ends = list(accumulate(map(len, self.held)))
        rows = [slice(end - len(span), end) for span, end in zip(self.held, ends, strict=True)]
        return tuple(rows[at] for at in self._taken)

    @cached_property
    def to_held(self) -> tuple[slice, ...]:
        """Slices of the rows as kernels take them, as held; none if the order is the same."""
        if not self.to_ascending:
            return ()
        rows, end = [slice(0)] * len(self.held), 0
        for at in self._taken:
            rows[at] = slice(end, end + len(self.held[at]))
            end = rows[at].stop
        return tuple(rows)

    @property
    def _taken(self) -> list[int]:
        """Indices of the ranges as kernels take them."""
        indices = range(len(self.held))
        if not self.ascends:
            return list(indices)
        return sorted(indices, key=lambda at: self.held[at].start)
