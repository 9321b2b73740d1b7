"""Which tokens of a sequence each rank owns; splitting and gathering tensors accordingly.

Every rank computes every other rank's share, so sizes are never exchanged. The arithmetic imports
no torch; ``split`` and ``gather`` import it when they are called.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, ClassVar

from longtake.errors import LayoutError, TensorError
from longtake.parallel.dims import ParallelDims
from longtake.parallel.heads import even_ranges
from longtake.parallel.mesh import RING_AXIS, ULYSSES_AXIS, axis_degree, axis_rank, sequence_rank

if TYPE_CHECKING:
    import torch
    from torch.distributed.device_mesh import DeviceMesh


@dataclass(frozen=True)
class TokenShards:
    """The token ranges of one sequence that each of its ranks owns.

    Args:
        ranges: Ranges of the whole sequence by sequence rank
            (``ring_rank * ulysses_degree + ulysses_rank``), in the order in which the rank holds
            them. A rank may own several ranges, or none; together they hold every token once.

    Raises:
        LayoutError: A token is missing, or owned twice.
    """

    ranges: tuple[tuple[range, ...], ...]
    _counts: ClassVar[tuple[int, ...]]

    def __post_init__(self) -> None:
        # of an instance; no field, which dataclasses.replace cannot copy, and no cached_property,
        # which torch.compile cannot trace
        counts = tuple(sum(len(span) for span in own) for own in self.ranges)
        object.__setattr__(self, "_counts", counts)
        expected = 0
        for span in sorted((r for own in self.ranges for r in own), key=lambda r: r.start):
            if span.step != 1 or span.start != expected or len(span) == 0:
                raise LayoutError(
                    f"{span} does not continue from token {expected}: the ranges of all ranks must "
                    "hold each token once, with no empty range and no step"
                )
            expected = span.stop

    @classmethod
    def even(cls, num_tokens: int | Sequence[int], dims: ParallelDims) -> TokenShards:
        """Split a sequence evenly over ``dims.ring_degree * dims.ulysses_degree`` ranks.

        Counts differ by at most one, both within each segment and within consecutive segments
        together: surplus tokens are dealt cyclically, and each segment continues where the previous
        one stopped.

        Args:
            num_tokens: Length of the sequence, any number including 0; or the lengths of its
                consecutive segments (video, text), each of which is split over all ranks.
            dims: The layout.

        Raises:
            LayoutError: ``num_tokens`` is neither a whole number of at least 0 nor a sequence of
                them.
        """
        return cls(_split_segments(_checked_segments(num_tokens), dims.sequence_degree))

    @classmethod
    def zigzag(cls, num_tokens: int | Sequence[int], dims: ParallelDims) -> TokenShards:
        """Split a sequence so that all ranks have the same work under a causal mask.

        The sequence is cut into ``2 * ring_degree`` chunks; ring rank i owns chunks i and
        ``2 * ring_degree - 1 - i``. Its Ulysses ranks own consecutive parts of these. Chunks, and
        the tokens of ranks, differ by at most one. Under a causal mask, the scores that ring ranks
        compute for a head differ by at most ``num_tokens``, the most that one query has, and not at
        all if ``2 * ring_degree`` divides the length.

        Args:
            num_tokens: Length of the sequence, any number including 0; or the lengths of the
                documents packed in it, each of which is split over all ranks.
            dims: The layout.

        Raises:
            LayoutError: ``num_tokens`` is neither a whole number of at least 0 nor a sequence of
                them.

        Source: USP, arXiv 2405.07719, algorithm 2.
        """
        return cls(_split_zigzag(_checked_segments(num_tokens), dims))

    @property
    def num_ranks(self) -> int:
        """Number of ranks that share the sequence."""
        return len(self.ranges)

    @property
    def counts(self) -> tuple[int, ...]:
        """Number of tokens of each sequence rank."""
        return self._counts

    @property
    def num_tokens(self) -> int:
        """Length of the whole sequence."""
        return sum(self.counts)

    def positions(self, mesh: DeviceMesh | None) -> torch.Tensor:
        """Positions in the whole sequence of this rank's tokens, in the order it holds them.

        Args:
            mesh: Mesh with axes ``ring`` and ``ulysses``; None for a single process.

        Returns:
            int64 ``[s]``, on the mesh's kind of device; on torch's default device without a mesh.

        Raises:
            LayoutError: The mesh and the shards have different numbers of ranks.
        """
        import torch

        device = None if mesh is None else mesh.device_type
        return self.split(torch.arange(self.num_tokens, device=device), mesh, dim=0)

    def split(self, tensor: torch.Tensor, mesh: DeviceMesh | None, dim: int) -> torch.Tensor:
        """Select this rank's tokens from a tensor that holds all of them. Sends nothing.

        Args:
            tensor: Any tensor of size ``num_tokens`` in dimension ``dim``: ``[..., S, ...]``.
            mesh: Mesh with axes ``ring`` and ``ulysses``; None for a single process.
            dim: Dimension of the tokens; negative values count from the end.

        Returns:
            ``[..., s, ...]``, a view if this rank owns at most one range.

        Raises:
            LayoutError: The mesh and the shards have different numbers of ranks.
            TensorError: The tensor has no such dimension, or another size in it.
        """
        import torch

        self.check_mesh(mesh)
        dim = _token_dim(tensor, dim, self.num_tokens, "the whole sequence has")
        own = self.ranges[sequence_rank(mesh)]
        pieces = [tensor.narrow(dim, span.start, len(span)) for span in own]
        if not pieces:
            return tensor.narrow(dim, 0, 0)
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=dim)

    def gather(self, tensor: torch.Tensor, mesh: DeviceMesh | None, dim: int) -> torch.Tensor:
        """Gather all ranks' tokens on every rank: the inverse of :meth:`split`.

        Collective over the ranks of the sequence. An all-gather in the Ulysses group is followed by
        one in the ring group, without padding: every rank receives every token once.

        Args:
            tensor: This rank's tokens, ``[..., s, ...]``; the other sizes and the dtype are the
                same on all ranks.
            mesh: Mesh with axes ``ring`` and ``ulysses``; None for a single process.
            dim: Dimension of the tokens; negative values count from the end.

        Returns:
            ``[..., S, ...]`` in sequence order, contiguous; on a single rank possibly ``tensor``
            itself.

        Raises:
            LayoutError: The mesh and the shards have different numbers of ranks.
            TensorError: The tensor has no such dimension, another size in it, or requires a
                gradient.
            PeerLostError: Another rank died or did not answer in time.
        """
        import torch

        from longtake.parallel.exchange import all_gather_tokens

        self.check_mesh(mesh)
        if torch.is_grad_enabled() and tensor.requires_grad:
            raise TensorError(
                "the tensor has requires_grad=True, and gather has no backward pass: sum the "
                "losses of each rank's own tokens, or gather under torch.no_grad()"
            )
        rank = sequence_rank(mesh)
        dim = _token_dim(tensor, dim, self.counts[rank], f"sequence rank {rank} owns")
        tokens = tensor.movedim(dim, 0)
        if mesh is not None:
            for axis, counts in (
                (ULYSSES_AXIS, self.ulysses_counts(mesh)),
                (RING_AXIS, self.ring_counts(mesh)),
            ):
                if len(counts) > 1:
                    tokens = all_gather_tokens(tokens, counts, mesh.get_group(axis))
        return self._in_sequence_order(tokens).movedim(0, dim).contiguous()

    def segment(self, tokens: range) -> TokenShards:
        """The shards of one segment of the sequence, with its tokens renumbered from 0.

        Raises:
            LayoutError: The range is not inside the sequence.
        """
        if tokens.step != 1 or not 0 <= tokens.start <= tokens.stop <= self.num_tokens:
            raise LayoutError(
                f"{tokens} is not a segment of {self.num_tokens} tokens: pass a range inside "
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

    def group_counts(self, ulysses_degree: int) -> list[tuple[int, ...]]:
        """Number of tokens of each rank of each Ulysses group, by ring rank."""
        return [
            self.counts[start : start + ulysses_degree]
            for start in range(0, self.num_ranks, ulysses_degree)
        ]

    def ulysses_counts(self, mesh: DeviceMesh | None) -> tuple[int, ...]:
        """Number of tokens of each rank of this rank's Ulysses group."""
        return self.group_counts(axis_degree(mesh, ULYSSES_AXIS))[axis_rank(mesh, RING_AXIS)]

    def ring_counts(self, mesh: DeviceMesh | None) -> tuple[int, ...]:
        """Number of tokens of each Ulysses group of this rank's sequence, by ring rank."""
        return tuple(sum(group) for group in self.group_counts(axis_degree(mesh, ULYSSES_AXIS)))

    def check_mesh(self, mesh: DeviceMesh | None) -> None:
        """Check that a mesh splits the sequence over as many ranks as these shards do.

        Raises:
            LayoutError: It does not.
        """
        if mesh is None and self.num_ranks > 1:
            raise LayoutError(
                f"mesh=None, and shards of {self.num_ranks} ranks: build the mesh with "
                "ParallelDims.build_mesh, or the shards for one rank"
            )
        ring_degree, ulysses_degree = axis_degree(mesh, RING_AXIS), axis_degree(mesh, ULYSSES_AXIS)
        if ring_degree * ulysses_degree != self.num_ranks:
            raise LayoutError(
                f"shards of {self.num_ranks} ranks on a mesh of ring_degree={ring_degree} x "
                f"ulysses_degree={ulysses_degree}: build both from the same ParallelDims"
            )

    def _in_sequence_order(self, tokens: torch.Tensor) -> torch.Tensor:
        """Reorder tokens (dimension 0) from rank order to sequence order."""
        import torch

        spans = [span for own in self.ranges for span in own]
        pieces = torch.split(tokens, [len(span) for span in spans])
        order = sorted(range(len(spans)), key=lambda piece: spans[piece].start)
        if order == list(range(len(spans))):
            return tokens
        return torch.cat([pieces[piece] for piece in order])


def _token_dim(tensor: torch.Tensor, dim: int, num_tokens: int, owner: str) -> int:
    """The dimension of the tokens, checked and counted from the front."""
    if not -tensor.ndim <= dim < tensor.ndim:
        raise TensorError(
            f"dim={dim} is not a dimension of a tensor of shape {tuple(tensor.shape)}: "
            f"pass {-tensor.ndim}..{tensor.ndim - 1}"
        )
    if tensor.shape[dim] != num_tokens:
        raise TensorError(
            f"shape {tuple(tensor.shape)} has {tensor.shape[dim]} tokens in dim={dim}, "
            f"{owner} {num_tokens}: check dim, or build the shards for this length"
        )
    return dim % tensor.ndim


def _checked_segments(num_tokens: int | Sequence[int]) -> tuple[int, ...]:
    """Lengths of the segments of a sequence."""
    segments = tuple(num_tokens) if isinstance(num_tokens, Sequence) else (num_tokens,)
    for count in segments:
        if isinstance(count, bool) or not isinstance(count, int) or count < 0:
            raise LayoutError(
                f"num_tokens={num_tokens!r} must be a whole number of at least 0, or one for "
                "each segment of the sequence: pass e.g. 1024 or (1024, 77)"
            )
    return segments


def _split_segments(segments: Iterable[int], num_ranks: int) -> tuple[tuple[range, ...], ...]:
    """Split each segment evenly; its surplus tokens go to the ranks after the last that got one."""
    owned: list[list[range]] = [[] for _ in range(num_ranks)]
    start = 0
    for count in segments:
        spans = even_ranges(count, num_ranks, start=start, first=start % num_ranks)
        for own, span in zip(owned, spans, strict=True):
            _append(own, span)
        start += count
    return tuple(map(tuple, owned))


def _split_zigzag(segments: Iterable[int], dims: ParallelDims) -> tuple[tuple[range, ...], ...]:
    """Split each segment over the ring in zigzag, and each ring rank's part over Ulysses."""
    ring_degree, ulysses_degree = dims.ring_degree, dims.ulysses_degree
    owned: list[list[range]] = [[] for _ in range(dims.sequence_degree)]
    start = 0
    for count in segments:
        counts = [len(part) for part in even_ranges(count, ring_degree, first=start % ring_degree)]
        lengths = [-(-each // 2) for each in counts] + [each // 2 for each in reversed(counts)]
        ends = list(accumulate(lengths, initial=start))
        chunks = [range(*edges) for edges in pairwise(ends)]
        for ring_rank in range(ring_degree):
            pair = chunks[ring_rank], chunks[-1 - ring_rank]
            parts = even_ranges(counts[ring_rank], ulysses_degree, first=start % ulysses_degree)
            for ulysses_rank, part in enumerate(parts):
                for span in _slice(pair, part):
                    _append(owned[ring_rank * ulysses_degree + ulysses_rank], span)
        start += count
    return tuple(map(tuple, owned))


def _slice(spans: Iterable[range], part: range) -> Iterator[range]:
    """The elements at these indices of ranges one after the other."""
    first = 0
    for span in spans:
        yield span[max(part.start - first, 0) : max(part.stop - first, 0)]
        first += len(span)


def _append(own: list[range], span: range) -> None:
    """Append a range, joined with the last if it continues it; an empty one is left out."""
    if span and own and own[-1].stop == span.start:
        own[-1] = range(own[-1].start, span.stop)
    elif span:
        own.append(span)
