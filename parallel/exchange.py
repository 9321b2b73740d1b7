"""Collectives and point-to-point exchanges. All communication of this package goes through here.

Every function turns the loss of a peer into PeerLostError, and reports the bytes that it sends to
:func:`count_traffic`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
import torch.distributed as dist

from longtake.errors import PeerLostError


@dataclass
class Traffic:
    """What this rank sent to other ranks while it was counted.

    Attributes:
        bytes_sent: Bytes sent to other ranks; a broadcast or a reduction counts the tensor once per
            receiving rank.
        calls: Number of collectives and point-to-point sends.
    """

    bytes_sent: int = 0
    calls: int = 0


_counted: ContextVar[Traffic | None] = ContextVar("counted traffic", default=None)


@contextmanager
def count_traffic() -> Iterator[Traffic]:
    """Count what the enclosed code sends through this package. Inner counts are not in outer ones.

    The figures are the sizes that are passed to torch.distributed. Backward passes run in the
    calling thread meanwhile, so that theirs are counted on every device.
    """
    traffic = Traffic()
    token = _counted.set(traffic)
    try:
        with torch.autograd.set_multithreading_enabled(False):
            yield traffic
    finally:
        _counted.reset(token)


def _count(num_bytes: int) -> None:
    traffic = _counted.get()
    if traffic is not None:
        traffic.bytes_sent += num_bytes
        traffic.calls += 1


def all_to_all(
    received: torch.Tensor,
    sent: torch.Tensor,
    received_sizes: Sequence[int],
    sent_sizes: Sequence[int],
    group: dist.ProcessGroup,
) -> None:
    """Exchange one flat, contiguous buffer with all ranks of the group, in one collective.

    Args:
        received: Output buffer, filled by source rank.
        sent: Input buffer, ordered by destination rank.
        received_sizes: Number of elements from each rank.
        sent_sizes: Number of elements for each rank.
        group: The process group.

    Raises:
        PeerLostError: A rank of the group died or did not answer within the group's timeout.
    """
    own_size = sent_sizes[dist.get_rank(group)]
    _count((sum(sent_sizes) - own_size) * sent.element_size())
    with peer_loss_as_error(dist.get_process_group_ranks(group)):
        dist.all_to_all_single(
            received.view(-1), sent.view(-1), list(received_sizes), list(sent_sizes), group=group
        )


def start_send_recv(
    sends: Sequence[tuple[torch.Tensor, int]],
    receives: Sequence[tuple[torch.Tensor, int]],
    group: dist.ProcessGroup,
) -> Callable[[], None]:
    """Start sending and receiving contiguous tensors in one batch. Empty tensors are skipped.

    Args:
        sends: Pairs of tensor and destination rank in the group. A tensor must not change before
            the wait returns.
        receives: Pairs of tensor and source rank in the group. A tensor must not be read before the
            wait returns.
        group: The process group.

    Returns:
        A function that waits for all transfers. Both it and this call raise PeerLostError if a rank
        died or did not answer within the group's timeout.
    """
    operations = [
        dist.P2POp(operation, tensor, group=group, group_peer=peer)
        for operation, pairs in ((dist.isend, sends), (dist.irecv, receives))
        for tensor, peer in pairs
        if tensor.numel() > 0
    ]
    for tensor, _ in sends:
        if tensor.numel() > 0:
            _count(tensor.nbytes)
    with peer_loss_as_error(dist.get_process_group_ranks(group)):
        pending = dist.batch_isend_irecv(operations) if operations else []

    def wait() -> None:
        with peer_loss_as_error(dist.get_process_group_ranks(group)):
            for work in pending:
                work.wait()
        operations.clear()  # it held the tensors until their transfers were done

    return wait


def all_gather_tokens(
    tokens: torch.Tensor, counts: Sequence[int], group: dist.ProcessGroup
) -> torch.Tensor:
    """Concatenate the tensors of all ranks of a group along dimension 0, on every rank.

    Args:
        tokens: This rank's tensor, of size ``counts[rank]`` in dimension 0.
        counts: Size of each rank's tensor.
        group: The process group.
    """
    rank = dist.get_rank(group)
    whole = tokens.new_empty((sum(counts), *tokens.shape[1:]))
    parts = list(torch.split(whole, list(counts)))
    parts[rank].copy_(tokens)
    peers = [peer for peer in range(len(counts)) if peer != rank]
    start_send_recv(
        sends=[(parts[rank], peer) for peer in peers],
        receives=[(parts[peer], peer) for peer in peers],
        group=group,
    )()
    return whole


def broadcast(tensor: torch.Tensor, source: int, group: dist.ProcessGroup) -> None:
    """Overwrite a contiguous tensor on every rank of the group with that of ``source``.

    Args:
        tensor: The tensor to send or to fill, in place.
        source: Rank in the group.
        group: The process group.
    """
    ranks = dist.get_process_group_ranks(group)
    if dist.get_rank(group) == source:
        _count(tensor.nbytes * (len(ranks) - 1))
    with peer_loss_as_error(ranks):
        dist.broadcast(tensor, ranks[source], group=group)


def all_reduce_max(value: int, group: dist.ProcessGroup) -> int:
    """The maximum of one byte over all ranks. The result is the same on all ranks.

    Args:
        value: 0 to 255.
        group: A process group that takes CPU tensors.
    """
    ranks = dist.get_process_group_ranks(group)
    values = torch.tensor([value], dtype=torch.uint8)
    _count(values.nbytes * (len(ranks) - 1))
    with peer_loss_as_error(ranks):
        dist.all_reduce(values, dist.ReduceOp.MAX, group=group)
    return int(values)


def gather_bytes(data: bytes, group: dist.ProcessGroup) -> list[bytes]:
    """Gather every rank's bytes, of any length, on every rank.

    Args:
        data: This rank's bytes.
        group: A process group that takes CPU tensors.
    """
    ranks = dist.get_process_group_ranks(group)
    lengths = [torch.zeros(1, dtype=torch.int64) for _ in ranks]
    with peer_loss_as_error(ranks):
        dist.all_gather(lengths, torch.tensor([len(data)]), group=group)
        longest = max(int(length) for length in lengths)
        padded = torch.zeros(longest, dtype=torch.uint8)
        padded[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        rows = [torch.empty_like(padded) for _ in ranks]
        dist.all_gather(rows, padded, group=group)
    _count((8 + longest) * (len(ranks) - 1))
    return [row[: int(length)].numpy().tobytes() for row, length in zip(rows, lengths, strict=True)]


@contextmanager
def peer_loss_as_error(ranks: Sequence[int]) -> Iterator[None]:
    """Turn the errors that torch.distributed raises when a peer is lost into PeerLostError.

    Args:
        ranks: Global ranks of the participants, for the message.
    """
    try:
        yield
    except RuntimeError as error:  # the type that every backend raises
        reason = str(error).partition("\n")[0]
        raise PeerLostError(
            f"rank {dist.get_rank()} lost a peer among ranks {list(ranks)}: one of them died, "
            f"raised, or did not answer in time; see its own error, then restart all ranks "
            f"({reason})"
        ) from error
