"""Which tokens of a sequence each rank owns; splitting and gathering tensors accordingly.

Every rank can compute every other rank's share, so sizes are never exchanged. The arithmetic
imports no torch; ``split`` and ``gather`` import it when they are called.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from longtake.errors import LayoutError, TensorError
from longtake.parallel.dims import ParallelDims
from longtake.parallel.heads import even_ranges
from longtake.parallel.mesh import RING_AXIS, ULYSSES_AXIS, axis_degree, axis_rank, sequence_rank

if TYPE_CHECKING:
    import torch
    from torch.distributed.device_mesh import DeviceMesh


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
        import torch

        self.check_mesh(mesh)
        dim = _token_dim(tensor, dim, self.num_tokens, "the whole sequence has")
        own = self.ranges[sequence_rank(mesh)]
        pieces = [tensor.narrow(dim, span.start, len(span)) for span in own]
        if not pieces:
            return tensor.narrow(dim, 0, 0)
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=dim)

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
        from longtake.parallel.exchange import gather_tokens, refuse_gradient

        self.check_mesh(mesh)
        refuse_gradient(tensor)
        rank = sequence_rank(mesh)
        dim = _token_dim(tensor, dim, self.counts[rank], f"sequence rank {rank} owns")
        tokens = tensor.movedim(dim, 0)
        if mesh is not None:
            for axis, counts in (
                (ULYSSES_AXIS, self.ulysses_counts(mesh)),
                (RING_AXIS, self.ring_counts(mesh)),
            ):
                if len(counts) > 1:
                    tokens = gather_tokens(tokens, counts, mesh.get_group(axis))
        return self._in_sequence_order(tokens).movedim(0, dim).contiguous()

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

    def ulysses_counts(self, mesh: DeviceMesh | None) -> tuple[int, ...]:
        """Tokens of each rank of this rank's Ulysses group."""
        return self.stations(axis_degree(mesh, ULYSSES_AXIS))[axis_rank(mesh, RING_AXIS)]

    def ring_counts(self, mesh: DeviceMesh | None) -> tuple[int, ...]:
        """Tokens of each station of the ring: the sum over one Ulysses group."""
        return tuple(sum(station) for station in self.stations(axis_degree(mesh, ULYSSES_AXIS)))

    def check_mesh(self, mesh: DeviceMesh | None) -> None:
        """Refuse a mesh whose sequence is split over another number of ranks."""
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
        """Put tokens (dimension 0) that stand in the order of the ranks in the sequence's order."""
        import torch

        spans = [span for own in self.ranges for span in own]
        pieces = torch.split(tokens, [len(span) for span in spans])
        order = sorted(range(len(spans)), key=lambda piece: spans[piece].start)
        if order == list(range(len(spans))):
            return tokens
        return torch.cat([pieces[piece] for piece in order])


def _token_dim(tensor: torch.Tensor, dim: int, num_tokens: int, owner: str) -> int:
    """Check the dimension of the tokens and count it from the front."""
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
