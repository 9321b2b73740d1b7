"""Streams tensors from all ranks to rank 0, one at a time, in an order known in advance."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence

import torch

from longtake.parallel.exchange import start_send_recv
from longtake.parallel.world import World

_MAX_IN_FLIGHT = 4
"""Sends that a rank starts before it waits for the oldest."""

_DATA, _END = 0, 1  # the last byte of each message
_OPEN, _DONE, _STOPPED = 0, 1, 2  # status that rank 0 sends to the others at the end


class GatherStream:
    """A gather to rank 0 that overlaps with producing the tensors.

    All ranks construct one with the same arguments. Rank 0 takes the other ranks' tensors by index;
    each other rank puts its own in ascending order, and blocks once a few are in flight. Any rank
    may end the stream early; all ranks learn of it in :meth:`close`, which every rank calls.
    Tensors are sent through host memory, whatever their device.

    Args:
        world: All ranks. With a single rank there is nothing to take or to put.
        owners: The rank that produces each tensor; rank 0's own are not sent.
        shapes: Shape of each tensor.
        dtype: Dtype of all tensors.

    Raises:
        PeerLostError: Here and in every method: another rank died or did not answer in time.
    """

    def __init__(
        self,
        world: World,
        owners: Sequence[int],
        shapes: Sequence[Sequence[int]],
        dtype: torch.dtype,
    ) -> None:
        self._group = world.control or world.group
        self._owners, self._shapes, self._dtype = owners, shapes, dtype
        self._is_first = world.rank == 0
        self._pending: dict[int, deque[int]] = {rank: deque() for rank in range(1, world.size)}
        for number, owner in enumerate(owners):
            if owner != 0:
                self._pending[owner].append(number)
        self._in_flight: deque[tuple[torch.Tensor, Callable[[], None]]] = deque()
        if self._is_first:
            self._incoming: dict[int, tuple[torch.Tensor, Callable[[], None]]] = {}
            for rank in self._pending:
                self._expect(rank)
        else:
            self._rank = world.rank
            self._status, self._wait_for_status = self._receive(1, 0)

    def take(self, number: int) -> torch.Tensor | None:
        """Rank 0: wait for a tensor of another rank, each rank's in ascending order.

        Args:
            number: Index of the tensor.

        Returns:
            The tensor on the CPU; None if its owner ends the stream.
        """
        owner = self._owners[number]
        message = self._next_from(owner)
        if message is None:
            return None
        return message[:-1].view(self._dtype).view(*self._shapes[number])

    def put(self, tensor: torch.Tensor) -> None:
        """Other ranks: send the next tensor; blocks while too many are in flight."""
        self._send(tensor, _DATA)
        while len(self._in_flight) > _MAX_IN_FLIGHT:
            self._in_flight.popleft()[1]()

    @property
    def stop_requested(self) -> bool:
        """Other ranks: whether rank 0 has ended the stream early."""
        # gloo fills the buffer in the background, but reports completion only to a blocking wait.
        return int(self._status[0]) == _STOPPED

    def close(self, stop: bool) -> bool:
        """End the stream, on all ranks together.

        Args:
            stop: Whether this rank ends it early; otherwise rank 0 must have taken all tensors, and
                the others must have put all of theirs.

        Returns:
            Whether any rank ended the stream early; the same on all ranks.
        """
        if not self._is_first:
            if stop and self._pending[self._rank]:
                self._send(None, _END)
            for _, wait in self._in_flight:
                wait()
            self._wait_for_status()
            return self.stop_requested
        status = torch.tensor([_STOPPED if stop else _DONE], dtype=torch.uint8)
        waits = [self._start([(status, rank)], []) for rank in self._pending]
        for rank in self._pending:
            while rank in self._incoming:
                self._next_from(rank)
        for wait in waits:
            wait()
        return stop

    def _next_from(self, rank: int) -> torch.Tensor | None:
        """A rank's next message; None if it ends the stream. Starts receiving the one after it."""
        message, wait = self._incoming.pop(rank)
        wait()
        if message[-1] == _END:
            return None
        self._expect(rank)
        return message

    def _expect(self, rank: int) -> None:
        if self._pending[rank]:
            self._incoming[rank] = self._receive(self._size(self._pending[rank].popleft()), rank)

    def _send(self, tensor: torch.Tensor | None, flag: int) -> None:
        number = self._pending[self._rank].popleft()
        message = torch.empty(self._size(number), dtype=torch.uint8)
        if tensor is not None:
            message[:-1].view(self._dtype).view(*self._shapes[number]).copy_(tensor)
        message[-1] = flag
        self._in_flight.append((message, self._start([(message, 0)], [])))

    def _size(self, number: int) -> int:
        """Size of a message in bytes."""
        return math.prod(self._shapes[number]) * self._dtype.itemsize + 1

    def _receive(self, num_bytes: int, rank: int) -> tuple[torch.Tensor, Callable[[], None]]:
        message = torch.zeros(num_bytes, dtype=torch.uint8)
        return message, self._start([], [(message, rank)])

    def _start(
        self, sends: list[tuple[torch.Tensor, int]], receives: list[tuple[torch.Tensor, int]]
    ) -> Callable[[], None]:
        assert self._group is not None
        return start_send_recv(sends, receives, self._group)
