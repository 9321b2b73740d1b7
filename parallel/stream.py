"""Tensors from all ranks to the first, one at a time, in an order that all know beforehand."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence

import torch

from longtake.parallel.exchange import swap_point_to_point
from longtake.parallel.world import World

_MAX_UNSENT = 4
_DATA, _END = 0, 1  # behind each tensor's bytes
_OPEN, _DONE, _STOPPED = 0, 1, 2  # what rank 0 says to the others at the end


class GatherStream:
    """A gather to rank 0 that goes on while the tensors are still being made.

    All ranks build one with the same arguments. Rank 0 takes the tensors of the others by number,
    each rank's in ascending order; the others put theirs in that order, run ahead by a few, and
    then wait. Any rank may end the stream early; all learn of it in :meth:`close`, which every
    rank calls. Tensors travel through host memory, wherever they are.

    Args:
        world: all ranks. With one rank there is nothing to take or to put.
        owners: the rank that each tensor comes from; rank 0's own do not travel.
        shapes: of each tensor.
        dtype: of all.

    Raises:
        PeerLostError: here and in every method: another rank died, or was silent for too long.
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
        self._left: dict[int, deque[int]] = {rank: deque() for rank in range(1, world.size)}
        for number, owner in enumerate(owners):
            if owner != 0:
                self._left[owner].append(number)
        self._unsent: deque[tuple[torch.Tensor, Callable[[], None]]] = deque()
        if self._is_first:
            self._coming: dict[int, tuple[torch.Tensor, Callable[[], None]]] = {}
            for rank in self._left:
                self._expect(rank)
        else:
            self._rank = world.rank
            self._verdict, self._wait_for_verdict = self._receive(1, 0)

    def take(self, number: int) -> torch.Tensor | None:
        """On rank 0: wait for a tensor of another rank.

        Returns:
            The tensor, on the CPU; None if its owner wants to stop.
        """
        owner = self._owners[number]
        message = self._next_from(owner)
        if message is None:
            return None
        return message[:-1].view(self._dtype).view(*self._shapes[number])

    def put(self, tensor: torch.Tensor) -> None:
        """On another rank: send its next tensor; waits while too many were not taken."""
        self._send(tensor, _DATA)
        while len(self._unsent) > _MAX_UNSENT:
            self._unsent.popleft()[1]()

    @property
    def told_to_stop(self) -> bool:
        """On another rank: whether rank 0 has ended the stream early."""
        # The transport fills the buffer in the background; a gloo receive says that it is complete
        # only to whoever waits for it.
        return int(self._verdict[0]) == _STOPPED

    def close(self, stop: bool) -> bool:
        """End the stream, on all ranks together.

        Args:
            stop: whether this rank ends it early; otherwise rank 0 has taken all tensors, and
                the others have put all of theirs.

        Returns:
            Whether it was ended early; the same on all ranks.
        """
        if not self._is_first:
            if stop and self._left[self._rank]:
                self._send(None, _END)
            for _, wait in self._unsent:
                wait()
            self._wait_for_verdict()
            return self.told_to_stop
        verdict = torch.tensor([_STOPPED if stop else _DONE], dtype=torch.uint8)
        waits = [self._start([(verdict, rank)], []) for rank in self._left]
        for rank in self._left:
            while rank in self._coming:
                self._next_from(rank)
        for wait in waits:
            wait()
        return stop

    def _next_from(self, rank: int) -> torch.Tensor | None:
        """A rank's next message, or None if it is its last word; the one behind it is expected."""
        message, wait = self._coming.pop(rank)
        wait()
        if message[-1] == _END:
            return None
        self._expect(rank)
        return message

    def _expect(self, rank: int) -> None:
        if self._left[rank]:
            self._coming[rank] = self._receive(self._size(self._left[rank].popleft()), rank)

    def _send(self, tensor: torch.Tensor | None, flag: int) -> None:
        number = self._left[self._rank].popleft()
        message = torch.empty(self._size(number), dtype=torch.uint8)
        if tensor is not None:
            message[:-1].view(self._dtype).view(*self._shapes[number]).copy_(tensor)
        message[-1] = flag
        self._unsent.append((message, self._start([(message, 0)], [])))

    def _size(self, number: int) -> int:
        """Bytes of a message."""
        return math.prod(self._shapes[number]) * self._dtype.itemsize + 1

    def _receive(self, num_bytes: int, rank: int) -> tuple[torch.Tensor, Callable[[], None]]:
        message = torch.zeros(num_bytes, dtype=torch.uint8)
        return message, self._start([], [(message, rank)])

    def _start(
        self, sends: list[tuple[torch.Tensor, int]], receives: list[tuple[torch.Tensor, int]]
    ) -> Callable[[], None]:
        assert self._group is not None
        return swap_point_to_point(sends, receives, self._group)
