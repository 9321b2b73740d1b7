"""Ulysses: exchange some tokens with all heads for all tokens with some heads, and back.

One all-to-all each way, for any number of tokens and heads per rank (DeepSpeed-Ulysses, arXiv
2309.14509; USP, arXiv 2405.07719, section 2). A rank's own share is not passed to the collective.
The only copies are packing and unpacking.

Legend, upper case for the whole Ulysses group, lower case for one rank: B batch, S/s query tokens,
T/t key tokens, N/n query heads, M/m KV heads, H head size.

A group's tokens are ordered [this rank's own; the other ranks' by rank]: attention without a mask
does not depend on the order, and this one saves a copy. With a mask they are ordered by rank, which
is by position in zigzag shards.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from longtake.parallel.exchange import all_to_all
from longtake.parallel.heads import HeadShards


@dataclass(frozen=True)
class UlyssesGroup:
    """A Ulysses group as one of its ranks sees it.

    Args:
        group: Process group.
        rank: This rank in the group.
        query_tokens: Query tokens (s) of each rank.
        kv_tokens: Key tokens (t) of each rank.
        heads: Heads of each rank.
        by_rank: Whether the group's tokens are ordered by rank; otherwise this rank's come first.
    """

    group: dist.ProcessGroup
    rank: int
    query_tokens: tuple[int, ...]
    kv_tokens: tuple[int, ...]
    heads: HeadShards
    by_rank: bool = False

    @property
    def degree(self) -> int:
        """Number of ranks."""
        return len(self.query_tokens)

    @property
    def peers(self) -> list[int]:
        """The other ranks."""
        return [rank for rank in range(self.degree) if rank != self.rank]

    def split(self, rows: torch.Tensor, tokens: Sequence[int]) -> dict[int, torch.Tensor]:
        """Split the rows of the group's tokens by their ranks, in order."""
        order = range(self.degree) if self.by_rank else (self.rank, *self.peers)
        return dict(zip(order, rows.split([tokens[rank] for rank in order]), strict=True))

    def split_sizes(self, peer_sizes: Sequence[int]) -> list[int]:
        """Split sizes for a collective: those of the peers, and 0 for this rank."""
        return [*peer_sizes[: self.rank], 0, *peer_sizes[self.rank :]]


@dataclass(frozen=True)
class _Stream:
    """Tensors with the same token split that are exchanged side by side, one row per token.

    A row is ``[B, heads of each tensor in turn, H]``: rows from several ranks concatenate to one
    tensor, of which each original tensor is a view.
    """

    tensors: tuple[torch.Tensor, ...]
    heads: tuple[tuple[range, ...], ...]
    tokens: tuple[int, ...]

    def shape(self, num_tokens: int, rank: int) -> tuple[int, int, int, int]:
        """Shape of the rows of a number of tokens with the heads of one rank."""
        batch, _, _, head_size = self.tensors[0].shape
        return (num_tokens, batch, sum(len(heads[rank]) for heads in self.heads), head_size)

    def new_rows(self, num_tokens: int, rank: int) -> torch.Tensor:
        """An uninitialized tensor of that shape."""
        return self.tensors[0].new_empty(self.shape(num_tokens, rank))

    def pack(self, rank: int, rows: torch.Tensor) -> None:
        """Copy the heads of one rank, for all tokens held here, into ``rows``."""
        parts = [
            tensor.transpose(0, 1)[:, :, heads[rank].start : heads[rank].stop]
            for tensor, heads in zip(self.tensors, self.heads, strict=True)
        ]
        torch.cat(parts, dim=2, out=rows)


def tokens_to_heads(
    q_BsNH: torch.Tensor,
    k_BtMH: torch.Tensor,
    v_BtMH: torch.Tensor,
    ulysses: UlyssesGroup,
    *,
    contiguous_kv: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Give each rank all tokens of its heads: q, k and v in one collective.

    Args:
        q_BsNH: Queries: this rank's tokens, all heads.
        k_BtMH: Keys, likewise.
        v_BtMH: Values, likewise.
        ulysses: The Ulysses group.
        contiguous_kv: Whether K and V need a contiguous buffer of their own, to be sent on. The
            same on all ranks of the group: it decides what is sent in which order.

    Returns:
        ``q_BSnH``, and ``kv_TBmH`` with keys in the first half of its heads and values in the
        second (see :func:`split_kv`). Both may be views of one buffer.

    Raises:
        PeerLostError: A rank of the group died or did not answer in time.
    """
    query, kv = ulysses.heads.query, ulysses.heads.kv
    if ulysses.query_tokens == ulysses.kv_tokens and not contiguous_kv:
        joint = _Stream((q_BsNH, k_BtMH, v_BtMH), (query, kv, kv), ulysses.query_tokens)
        rows = _exchange_stream(joint, ulysses)
        num_heads = len(query[ulysses.rank])
        return rows[:, :, :num_heads].transpose(0, 1), rows[:, :, num_heads:]
    q_rows, kv_rows = _exchange_streams(
        [
            _Stream((q_BsNH,), (query,), ulysses.query_tokens),
            _Stream((k_BtMH, v_BtMH), (kv, kv), ulysses.kv_tokens),
        ],
        ulysses,
    )
    return q_rows.transpose(0, 1), kv_rows


def heads_to_tokens(out_BSnH: torch.Tensor, ulysses: UlyssesGroup) -> torch.Tensor:
    """Give each rank all heads of its tokens: the inverse of :func:`tokens_to_heads`.

    Args:
        out_BSnH: Attention output: all tokens of the group in the order of tokens_to_heads, this
            rank's heads.
        ulysses: The Ulysses group.

    Returns:
        ``out_BsNH``, contiguous.

    Raises:
        PeerLostError: A rank of the group died or did not answer in time.
    """
    rows = out_BSnH.transpose(0, 1).contiguous()
    shares = ulysses.split(rows, ulysses.query_tokens)
    own = shares.pop(ulysses.rank)
    own_tokens, batch, num_heads, head_size = own.shape
    recv_shapes = [
        (own_tokens, batch, len(ulysses.heads.query[peer]), head_size) for peer in ulysses.peers
    ]
    send_shapes = [
        (ulysses.query_tokens[peer], batch, num_heads, head_size) for peer in ulysses.peers
    ]
    received = rows.new_empty(sum(map(math.prod, recv_shapes)))
    all_to_all(
        received,
        torch.cat([*shares.values()]) if ulysses.by_rank else rows[own_tokens:],
        ulysses.split_sizes([math.prod(shape) for shape in recv_shapes]),
        ulysses.split_sizes([math.prod(shape) for shape in send_shapes]),
        ulysses.group,
    )
    parts = _views(received, recv_shapes)
    parts.insert(ulysses.rank, own)
    return torch.cat([part.transpose(0, 1) for part in parts], dim=2)


def queries_to_heads(x_BsNH: torch.Tensor, ulysses: UlyssesGroup) -> torch.Tensor:
    """Give each rank all query tokens of its heads: the adjoint of :func:`heads_to_tokens`.

    Args:
        x_BsNH: This rank's tokens, all heads.
        ulysses: The Ulysses group.

    Returns:
        ``x_BSnH``, tokens in the order of tokens_to_heads.

    Raises:
        PeerLostError: A rank of the group died or did not answer in time.
    """
    stream = _Stream((x_BsNH,), (ulysses.heads.query,), ulysses.query_tokens)
    return _exchange_stream(stream, ulysses).transpose(0, 1)


def gradients_to_tokens(
    dq_BSnH: torch.Tensor, dk_BTmH: torch.Tensor, dv_BTmH: torch.Tensor, ulysses: UlyssesGroup
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Give each rank the gradients of its tokens: the adjoint of :func:`tokens_to_heads`.

    One collective. The gradients of a KV head that several ranks hold are added by rank, in float32
    (float64 for float64).

    Args:
        dq_BSnH: Gradients of the queries: all tokens of the group, this rank's heads.
        dk_BTmH: Gradients of the keys, likewise.
        dv_BTmH: Gradients of the values, likewise.
        ulysses: The Ulysses group.

    Returns:
        ``dq_BsNH``, ``dk_BtMH`` and ``dv_BtMH``.

    Raises:
        PeerLostError: A rank of the group died or did not answer in time.
    """
    own, heads = ulysses.rank, (ulysses.heads.query, ulysses.heads.kv, ulysses.heads.kv)
    tokens = ulysses.query_tokens, ulysses.kv_tokens, ulysses.kv_tokens
    shares = [
        ulysses.split(tensor.transpose(0, 1), counts)
        for tensor, counts in zip((dq_BSnH, dk_BTmH, dv_BTmH), tokens, strict=True)
    ]
    batch, _, _, head_size = dq_BSnH.shape
    shapes = [
        [
            (counts[own], batch, len(held[peer]), head_size)
            for counts, held in zip(tokens, heads, strict=True)
        ]
        for peer in ulysses.peers
    ]
    sent = [[share[peer] for share in shares] for peer in ulysses.peers]
    by_rank = _exchange_tensors(sent, shapes, ulysses)
    by_rank.insert(own, [share[own] for share in shares])
    dq, dk, dv = map(_join_heads, zip(*by_rank, strict=True), heads)
    return dq, dk, dv


def _exchange_tensors(
    sent: Sequence[Sequence[torch.Tensor]],
    shapes: Sequence[Sequence[tuple[int, ...]]],
    ulysses: UlyssesGroup,
) -> list[list[torch.Tensor]]:
    """Send each peer some tensors, and receive theirs, in one collective.

    Args:
        sent: Tensors for each peer.
        shapes: Shapes of the tensors from each peer.
        ulysses: The Ulysses group.
    """
    flat = [[tensor.reshape(-1) for tensor in tensors] for tensors in sent]
    sizes = [sum(map(math.prod, each)) for each in shapes]
    received = sent[0][0].new_empty(sum(sizes))
    all_to_all(
        received,
        torch.cat([tensor for tensors in flat for tensor in tensors]),
        ulysses.split_sizes(sizes),
        ulysses.split_sizes([sum(map(len, tensors)) for tensors in flat]),
        ulysses.group,
    )
    return [_views(part, each) for part, each in zip(received.split(sizes), shapes, strict=True)]


def _join_heads(parts: Sequence[torch.Tensor], held: Sequence[range]) -> torch.Tensor:
    """Join the gradients of this rank's tokens; add those of a head that several ranks hold.

    Args:
        parts: ``dx_tBmH`` from each rank, of its heads.
        held: Heads of each rank.
    """
    by_rank = [part.transpose(0, 1) for part in parts]
    num_heads = max(each.stop for each in held)
    if sum(map(len, held)) == num_heads:
        return torch.cat(by_rank, dim=2)
    batch, num_tokens, _, head_size = by_rank[0].shape
    wide = torch.promote_types(parts[0].dtype, torch.float32)
    total = parts[0].new_zeros((batch, num_tokens, num_heads, head_size), dtype=wide)
    for part, own in zip(by_rank, held, strict=True):
        total[:, :, own.start : own.stop] += part
    return total.to(parts[0].dtype)


def pack_kv(k_BtmH: torch.Tensor, v_BtmH: torch.Tensor) -> torch.Tensor:
    """Copy K and V into one contiguous buffer ``kv_tBmH``, as :func:`tokens_to_heads` does."""
    batch, num_tokens, num_kv_heads, head_size = k_BtmH.shape
    kv = k_BtmH.new_empty((num_tokens, batch, 2 * num_kv_heads, head_size))
    return torch.cat((k_BtmH.transpose(0, 1), v_BtmH.transpose(0, 1)), dim=2, out=kv)


def split_kv(kv_TBmH: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The keys ``k_BTmH`` and values ``v_BTmH`` of such a buffer, as views."""
    k_TBmH, v_TBmH = kv_TBmH.chunk(2, dim=2)
    return k_TBmH.transpose(0, 1), v_TBmH.transpose(0, 1)


def _exchange_stream(stream: _Stream, ulysses: UlyssesGroup) -> torch.Tensor:
    """Exchange one stream; return the rows of all tokens of the group, received in place."""
    if ulysses.by_rank:
        return _exchange_streams([stream], ulysses)[0]
    own_tokens = stream.tokens[ulysses.rank]
    rows = stream.new_rows(sum(stream.tokens), ulysses.rank)
    stream.pack(ulysses.rank, rows[:own_tokens])
    _exchange([stream], rows[own_tokens:], ulysses)
    return rows


def _exchange_streams(streams: Sequence[_Stream], ulysses: UlyssesGroup) -> list[torch.Tensor]:
    """Exchange several streams in one collective; return the rows of each."""
    shapes = [s.shape(s.tokens[peer], ulysses.rank) for peer in ulysses.peers for s in streams]
    received = streams[0].tensors[0].new_empty(sum(map(math.prod, shapes)))
    _exchange(streams, received, ulysses)
    parts = _views(received, shapes)
    gathered = []
    for position, stream in enumerate(streams):
        rows = stream.new_rows(sum(stream.tokens), ulysses.rank)
        shares = ulysses.split(rows, stream.tokens)
        stream.pack(ulysses.rank, shares[ulysses.rank])
        for peer, part in zip(ulysses.peers, parts[position :: len(streams)], strict=True):
            shares[peer].copy_(part)
        gathered.append(rows)
    return gathered


def _exchange(streams: Sequence[_Stream], received: torch.Tensor, ulysses: UlyssesGroup) -> None:
    """Send each peer its heads of this rank's tokens, stream by stream, and receive the same."""
    rank, peers = ulysses.rank, ulysses.peers
    send_shapes = [[s.shape(s.tokens[rank], peer) for s in streams] for peer in peers]
    recv_shapes = [[s.shape(s.tokens[peer], rank) for s in streams] for peer in peers]
    send_sizes = [sum(map(math.prod, shapes)) for shapes in send_shapes]
    recv_sizes = [sum(map(math.prod, shapes)) for shapes in recv_shapes]
    sent = received.new_empty(sum(send_sizes))
    parts = iter(_views(sent, [shape for shapes in send_shapes for shape in shapes]))
    for peer in peers:
        for stream in streams:
            stream.pack(peer, next(parts))
    all_to_all(
        received,
        sent,
        ulysses.split_sizes(recv_sizes),
        ulysses.split_sizes(send_sizes),
        ulysses.group,
    )


def _views(buffer: torch.Tensor, shapes: Sequence[tuple[int, ...]]) -> list[torch.Tensor]:
    """Consecutive views of a flat buffer, in these shapes."""
    parts = torch.split(buffer, [math.prod(shape) for shape in shapes])
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]
