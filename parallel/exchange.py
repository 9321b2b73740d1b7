"""The two ways in which tensors pass between ranks. All communication of this package is here.

Both leave out what is empty on the two sides, and turn the loss of a peer into PeerLostError.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist

from longtake.errors import PeerLostError, TensorError


def all_to_all(
    received: torch.Tensor,
    sent: torch.Tensor,
    received_sizes: Sequence[int],
    sent_sizes: Sequence[int],
    group: dist.ProcessGroup,
) -> None:
    """Exchange one flat, contiguous buffer with all ranks of the group, in one collective.

    Args:
        received: filled with what each rank sent here, in the order of their ranks.
        sent: what goes to each rank, in the order of their ranks.
        received_sizes: elements from each rank.
        sent_sizes: elements to each rank.

    Raises:
        PeerLostError: a rank of the group died or did not answer within the group's timeout.
    """
    with peers_answer(dist.get_process_group_ranks(group)):
        dist.all_to_all_single(
            received.view(-1), sent.view(-1), list(received_sizes), list(sent_sizes), group=group
        )


def swap_point_to_point(
    sends: Sequence[tuple[torch.Tensor, int]],
    receives: Sequence[tuple[torch.Tensor, int]],
    group: dist.ProcessGroup,
) -> Callable[[], None]:
    """Start sending and receiving contiguous tensors, each with a rank of the group.

    Args:
        sends: (tensor, rank of the group that it goes to); unchanged until the wait returns.
        receives: (tensor, rank of the group that fills it); not read until the wait returns.

    Returns:
        A function that waits for all of them. It and the call itself raise PeerLostError when a
        rank died or did not answer within the group's timeout.
    """
    operations = [
        dist.P2POp(operation, tensor, group=group, group_peer=peer)
        for operation, pairs in ((dist.isend, sends), (dist.irecv, receives))
        for tensor, peer in pairs
        if tensor.numel() > 0
    ]
    with peers_answer(dist.get_process_group_ranks(group)):
        pending = dist.batch_isend_irecv(operations) if operations else []

    def wait() -> None:
        with peers_answer(dist.get_process_group_ranks(group)):
            for work in pending:
                work.wait()

    return wait


def refuse_gradient(*tensors: torch.Tensor) -> None:
    """Raise TensorError rather than lose a gradient: nothing here can be differentiated."""
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        raise TensorError(
            "a tensor has requires_grad=True, and there is no backward pass across ranks: "
            "call this under torch.no_grad()"
        )


@contextmanager
def peers_answer(ranks: Sequence[int]) -> Iterator[None]:
    """Turn what torch.distributed raises when a peer is lost into PeerLostError.

    Args:
        ranks: global ranks of those that take part.
    """
    try:
        yield
    except RuntimeError as error:  # what every backend raises
        reason = str(error).partition("\n")[0]
        raise PeerLostError(
            f"rank {dist.get_rank()} lost a peer among ranks {list(ranks)}: one of them died, "
            f"raised, or was silent past the timeout; see its own error, then start all again "
            f"({reason})"
        ) from error
