"""Ulysses: tokens of all heads on each rank become all tokens of some heads, and back.

One all-to-all each way, for any number of tokens and heads on any rank (DeepSpeed-Ulysses,
arXiv 2309.14509; USP, arXiv 2405.07719, section 2). What a rank keeps is never handed to the
collective, and no copy is made beyond packing for it and unpacking from it.

Shapes, upper case over the whole Ulysses group, lower case of one rank:
    B batch, S/s query tokens, T/t keys' tokens, N/n query heads, M/m KV heads, H head size.

A group's tokens stand in the order [this rank's own; those of the others by rank]. Attention
without a causal mask does not care, and it saves this rank's own share a trip through the buffers.
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
    """Who holds what in one Ulysses group, as one of its ranks sees it.

    Args:
        group: the ranks.
        rank: this rank's place among them.
        query_tokens: query tokens (s) of each rank.
        kv_tokens: keys' tokens (t) of each rank.
        heads: the heads of each rank.
    """

    group: dist.ProcessGroup
    rank: int
    query_tokens: tuple[int, ...]
    kv_tokens: tuple[int, ...]
    heads: HeadShards

    @property
    def degree(self) -> int:
        """Ranks of the group."""
        return len(self.query_tokens)

    @property
    def peers(self) -> list[int]:
        """The other ranks of the group."""
        return [rank for rank in range(self.degree) if rank != self.rank]

    def by_rank(self, sizes_of_peers: Sequence[int]) -> list[int]:
        """Sizes for a collective: those of the peers, and nothing for this rank itself."""
        return [*sizes_of_peers[: self.rank], 0, *sizes_of_peers[self.rank :]]


@dataclass(frozen=True)
class _Stream:
    """Tensors that are split alike in tokens and travel side by side, one token a row.

    A row is ``[B, heads of every tensor in turn, H]``: what arrives from several ranks is then one
    tensor by itself, and each of its parts a view.
    """

    tensors: tuple[torch.Tensor, ...]
    heads: tuple[tuple[range, ...], ...]
    tokens: tuple[int, ...]

    def shape(self, num_tokens: int, rank: int) -> tuple[int, int, int, int]:
        """The shape of the rows of some tokens with the heads of one rank."""
        batch, _, _, head_size = self.tensors[0].shape
        return (num_tokens, batch, sum(len(heads[rank]) for heads in self.heads), head_size)

    def new_rows(self, num_tokens: int, rank: int) -> torch.Tensor:
        """Memory for such rows."""
        return self.tensors[0].new_empty(self.shape(num_tokens, rank))

    def pack(self, rank: int, rows: torch.Tensor) -> None:
        """Copy the heads that one rank computes, of all tokens here."""
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
    """Give each rank all tokens of its own heads. q, k and v travel in one collective.

    Args:
        q_BsNH, k_BtMH, v_BtMH: this rank's tokens, all heads.
        ulysses: who holds what.
        contiguous_kv: K and V must stand in a buffer of their own, ready to be sent on.

    Returns:
        ``q_BSnH``, and ``kv_TBmH``: keys in the first half of its heads, values in the second
        (see :func:`split_kv`). Both are views of one buffer where they may be.

    Raises:
        PeerLostError: a rank of the group died or did not answer in time.
    """
    query, kv = ulysses.heads.query, ulysses.heads.kv
    if ulysses.query_tokens == ulysses.kv_tokens and not contiguous_kv:
        joint = _Stream((q_BsNH, k_BtMH, v_BtMH), (query, kv, kv), ulysses.query_tokens)
        rows = _scatter_jointly(joint, ulysses)
        num_heads = len(query[ulysses.rank])
        return rows[:, :, :num_heads].transpose(0, 1), rows[:, :, num_heads:]
    q_rows, kv_rows = _scatter_apart(
        [
            _Stream((q_BsNH,), (query,), ulysses.query_tokens),
            _Stream((k_BtMH, v_BtMH), (kv, kv), ulysses.kv_tokens),
        ],
        ulysses,
    )
    return q_rows.transpose(0, 1), kv_rows


def heads_to_tokens(out_BSnH: torch.Tensor, ulysses: UlyssesGroup) -> torch.Tensor:
    """Give each rank its own tokens of all heads: the way back from :func:`tokens_to_heads`.

    Args:
        out_BSnH: all tokens of the group in the order that tokens_to_heads left them in, this
            rank's heads.

    Returns:
        ``out_BsNH``, contiguous.

    Raises:
        PeerLostError: a rank of the group died or did not answer in time.
    """
    rows = out_BSnH.transpose(0, 1).contiguous()
    own_tokens, (_, batch, num_heads, head_size) = ulysses.query_tokens[ulysses.rank], rows.shape
    arriving = [
        (own_tokens, batch, len(ulysses.heads.query[peer]), head_size) for peer in ulysses.peers
    ]
    leaving = [(ulysses.query_tokens[peer], batch, num_heads, head_size) for peer in ulysses.peers]
    received = rows.new_empty(sum(map(math.prod, arriving)))
    all_to_all(
        received,
        rows[own_tokens:],
        ulysses.by_rank([math.prod(shape) for shape in arriving]),
        ulysses.by_rank([math.prod(shape) for shape in leaving]),
        ulysses.group,
    )
    parts = _cut(received, arriving)
    parts.insert(ulysses.rank, rows[:own_tokens])
    return torch.cat([part.transpose(0, 1) for part in parts], dim=2)


def pack_kv(k_BtmH: torch.Tensor, v_BtmH: torch.Tensor) -> torch.Tensor:
    """Put K and V in one contiguous buffer ``kv_tBmH``, as :func:`tokens_to_heads` does."""
    batch, num_tokens, num_kv_heads, head_size = k_BtmH.shape
    kv = k_BtmH.new_empty((num_tokens, batch, 2 * num_kv_heads, head_size))
    return torch.cat((k_BtmH.transpose(0, 1), v_BtmH.transpose(0, 1)), dim=2, out=kv)


def split_kv(kv_TBmH: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The keys ``k_BTmH`` and values ``v_BTmH`` in such a buffer, as views."""
    k_TBmH, v_TBmH = kv_TBmH.chunk(2, dim=2)
    return k_TBmH.transpose(0, 1), v_TBmH.transpose(0, 1)


def _scatter_jointly(stream: _Stream, ulysses: UlyssesGroup) -> torch.Tensor:
    """Exchange one stream, received in place: the rows of the whole group's tokens."""
    own_tokens = stream.tokens[ulysses.rank]
    rows = stream.new_rows(sum(stream.tokens), ulysses.rank)
    stream.pack(ulysses.rank, rows[:own_tokens])
    _exchange([stream], rows[own_tokens:], ulysses)
    return rows


def _scatter_apart(streams: Sequence[_Stream], ulysses: UlyssesGroup) -> list[torch.Tensor]:
    """Exchange several streams in one collective, then put each one's rows together."""
    shapes = [s.shape(s.tokens[peer], ulysses.rank) for peer in ulysses.peers for s in streams]
    received = streams[0].tensors[0].new_empty(sum(map(math.prod, shapes)))
    _exchange(streams, received, ulysses)
    parts = _cut(received, shapes)
    whole = []
    for position, stream in enumerate(streams):
        own_tokens = stream.tokens[ulysses.rank]
        rows = stream.new_rows(sum(stream.tokens), ulysses.rank)
        stream.pack(ulysses.rank, rows[:own_tokens])
        torch.cat(parts[position :: len(streams)], out=rows[own_tokens:])
        whole.append(rows)
    return whole


def _exchange(streams: Sequence[_Stream], received: torch.Tensor, ulysses: UlyssesGroup) -> None:
    """Send each peer its heads of this rank's tokens, stream by stream; receive theirs alike."""
    rank, peers = ulysses.rank, ulysses.peers
    leaving = [[s.shape(s.tokens[rank], peer) for s in streams] for peer in peers]
    arriving = [[s.shape(s.tokens[peer], rank) for s in streams] for peer in peers]
    leaving_sizes = [sum(map(math.prod, shapes)) for shapes in leaving]
    arriving_sizes = [sum(map(math.prod, shapes)) for shapes in arriving]
    sent = received.new_empty(sum(leaving_sizes))
    parts = iter(_cut(sent, [shape for shapes in leaving for shape in shapes]))
    for peer in peers:
        for stream in streams:
            stream.pack(peer, next(parts))
    all_to_all(
        received,
        sent,
        ulysses.by_rank(arriving_sizes),
        ulysses.by_rank(leaving_sizes),
        ulysses.group,
    )


def _cut(buffer: torch.Tensor, shapes: Sequence[tuple[int, ...]]) -> list[torch.Tensor]:
    """A flat buffer as tensors of these shapes, one behind the other."""
    parts = torch.split(buffer, [math.prod(shape) for shape in shapes])
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]
