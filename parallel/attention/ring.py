"""Ring attention: keys and values rotate among the ranks, queries stay.

Each rank attends to the block that it holds while it receives the next one, and merges the partial
results by log-sum-exp (Ring Attention, arXiv 2310.01889; the merge is FlashAttention's, arXiv
2205.14135, section 3.1). Exact for blocks of any lengths, equal or not, with and without a mask.

In the backward pass the blocks rotate again. Probabilities follow from the log-sum-exp over all
keys, so each rank computes its part of a block's gradient on its own, and sends it straight to the
block's owner while it computes the next one. The owner adds the parts in float32, in the same order
each time. Gradients that travel with their blocks would have to travel as float32 sums: twice the
bytes in half precision.

Legend: B batch, S this rank's query tokens, T tokens of one K/V block, n query heads, m KV heads,
H head size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist

from longtake.parallel.attention.all_to_all import pack_kv, split_kv
from longtake.parallel.attention.mask import Tile
from longtake.parallel.attention.partial import (
    GradientSum,
    PartialAttention,
    TileAttention,
    TileBackward,
    add_gradients,
)
from longtake.parallel.attention.schedule import RingSchedule
from longtake.parallel.exchange import start_send_recv
from longtake.parallel.kernels.kernel import SavedTensors


@dataclass(frozen=True)
class RingGroup:
    """The ring as one of its ranks sees it.

    Args:
        group: Process group of the ring; None for a single rank.
        rank: This rank in the group.
        schedule: The blocks that each rank holds and sees.
    """

    group: dist.ProcessGroup | None
    rank: int
    schedule: RingSchedule

    @property
    def degree(self) -> int:
        """Number of ranks."""
        return self.schedule.degree

    def tiles(self, step: int) -> Sequence[Tile]:
        """What this rank's queries see of the block that it holds at a step."""
        return self.schedule.tiles(self.rank, step)

    def next_shape(self, kv_TBmH: torch.Tensor, step: int) -> tuple[int, ...]:
        """Shape of the block that follows the one of a step."""
        return (self.schedule.held(self.rank, step + 1), *kv_TBmH.shape[1:])

    @contextmanager
    def rotate(self, block: torch.Tensor, received: torch.Tensor, step: int) -> Iterator[None]:
        """Send the block of a step to the rank that holds it next, and receive another, meanwhile.

        Both have ended when the context does, after an error too: a later call would receive what
        this one left.

        Args:
            block: The block of this step.
            received: Buffer of the next step's block; empty after the last step.
            step: The step.
        """
        if step + 1 == self.degree:
            yield
            return
        direction, degree = self.schedule.direction, self.degree
        receiver, sender = (self.rank + direction) % degree, (self.rank - direction) % degree
        sent = block[: self.schedule.held(receiver, step + 1)]
        wait = self.exchange((sent, receiver), (received, sender))
        try:
            yield
        finally:
            wait()

    def exchange(
        self, send: tuple[torch.Tensor, int], receive: tuple[torch.Tensor, int]
    ) -> Callable[[], None]:
        """Start sending a tensor to a rank and receiving another; returns a function that waits."""
        assert self.group is not None, "a ring of several ranks has a group"
        return start_send_recv(sends=[send], receives=[receive], group=self.group)


def ring_attention(
    q_BSnH: torch.Tensor,
    kv_TBmH: torch.Tensor,
    ring: RingGroup,
    attend: TileAttention,
    *,
    keep_block: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attention of this rank's queries over the keys of all ranks of the ring.

    Args:
        q_BSnH: This rank's queries.
        kv_TBmH: This rank's K/V block in one buffer (see :func:`split_kv`). With several ranks it
            must be contiguous.
        ring: The ring; at least one of its blocks is not empty.
        attend: Local attention over one tile; with several tiles it must return a log-sum-exp.
        keep_block: Whether the memory of ``kv_TBmH`` must not be reused.

    Returns:
        ``out_BSnH`` in q's dtype, and ``lse_BSn`` unless the kernel computes none. Partial results
        are merged in float32 (float64 for float64).

    Raises:
        PeerLostError: A rank of the ring died or did not answer in time.
    """
    attention = PartialAttention(q_BSnH)
    free = kv_TBmH[:0]
    for step in range(ring.degree):
        received = _reuse(free, ring.next_shape(kv_TBmH, step))
        with ring.rotate(kv_TBmH, received, step):
            attention.add(*split_kv(kv_TBmH), ring.tiles(step), attend)
        free, kv_TBmH = kv_TBmH[:0] if keep_block and step == 0 else kv_TBmH, received
    return attention.result()


def ring_attention_backward(
    grad_out_BSnH: torch.Tensor,
    saved: SavedTensors,
    kv_TBmH: torch.Tensor,
    ring: RingGroup,
    backward: TileBackward,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of :func:`ring_attention`, complete on the ranks that own q, k and v.

    Args:
        grad_out_BSnH: Gradient of the output.
        saved: This rank's queries and block, with the output and log-sum-exp over all keys.
        kv_TBmH: The block in one contiguous buffer; not read with a single rank.
        ring: The ring.
        backward: Gradients of one tile.

    Returns:
        ``dq_BSnH``, ``dk_BTmH`` and ``dv_BTmH`` in the dtypes of q and k, summed in float32
        (float64 for float64).

    Raises:
        PeerLostError: A rank of the ring died or did not answer in time.
    """
    query, own = GradientSum(saved.q), (GradientSum(saved.k), GradientSum(saved.v))
    arrive: Callable[[], None] = _nothing
    for step in range(ring.degree):
        received = kv_TBmH.new_empty(ring.next_shape(kv_TBmH, step))
        with ring.rotate(kv_TBmH, received, step):
            k, v = split_kv(kv_TBmH) if step > 0 else (saved.k, saved.v)
            block = own if step == 0 else (GradientSum(k), GradientSum(v))
            inputs = saved._replace(k=k, v=v)
            try:
                add_gradients((query, *block), grad_out_BSnH, inputs, ring.tiles(step), backward)
            finally:
                arrive()  # what was sent at the step before, while this step computed
            if step > 0:
                arrive = _send_home(block, own, kv_TBmH, ring, step)
        kv_TBmH = received
    arrive()
    return query.total(), own[0].total(), own[1].total()


def _send_home(
    block: Sequence[GradientSum],
    own: Sequence[GradientSum],
    kv_TBmH: torch.Tensor,
    ring: RingGroup,
    step: int,
) -> Callable[[], None]:
    """Start sending the gradient of another rank's block to it, and receiving a part of our own.

    Returns:
        A function that waits, and adds the part to ``own``.
    """
    schedule, rank = ring.schedule, ring.rank
    owner, visitor = schedule.owner(rank, step), schedule.visitor(rank, step)
    num_sent, num_received = schedule.seen(rank, owner), schedule.seen(visitor, rank)
    sent = pack_kv(*(gradient.total(num_sent) for gradient in block))
    received = kv_TBmH.new_empty((num_received, *kv_TBmH.shape[1:]))
    wait = ring.exchange((sent, owner), (received, visitor))

    def arrive() -> None:
        wait()
        for gradient, part in zip(own, split_kv(received), strict=True):
            gradient.add(slice(0, num_received), part)

    return arrive


def _nothing() -> None:
    """Nothing was sent."""


def _reuse(buffer: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """A view of the buffer in another shape if it is large enough, else a new tensor."""
    size = math.prod(shape)
    if buffer.numel() < size:
        return buffer.new_empty(shape)
    return buffer.view(-1)[:size].view(shape)
