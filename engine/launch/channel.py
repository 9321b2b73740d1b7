"""Messages between the engine and its ranks, over a key-value store.

Whoever waits here waits on the store, never inside a collective.
"""

from __future__ import annotations

import json
import socket
import time
from typing import Any

import torch.distributed as dist

_PIECE_BYTES = 4 * 2**20  # the store refuses values above 8 MiB


def listen_locally() -> dist.TCPStore:
    """A store that only this machine can reach; torch's own would listen on every interface."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(1024)
    port = listener.getsockname()[1]
    return dist.TCPStore(
        "127.0.0.1",
        port,
        is_master=True,
        wait_for_workers=False,
        master_listen_fd=listener.detach(),
    )


class Mailbox:
    """JSON messages in the order in which they were posted, each with some bytes or none.

    Any number of writers. One reader that keeps nothing, or several that each read all.

    Args:
        store: shared by all sides.
        name: of this mailbox in the store.
        keep: leave messages in the store, for other readers.
    """

    def __init__(self, store: dist.Store, name: str, *, keep: bool = False) -> None:
        self._store = store
        self._name = name
        self._keep = keep
        self._next = 1

    def post(self, message: dict[str, Any], payload: bytes = b"", max_unread: int = 0) -> None:
        """Add a message.

        Args:
            max_unread: wait while so many messages were not read yet; 0 never waits.
        """
        number = self._store.add(f"{self._name}/posted", 1)
        while max_unread and number - self._store.add(f"{self._name}/read", 0) > max_unread:
            time.sleep(0.005)
        pieces = [
            payload[start : start + _PIECE_BYTES] for start in range(0, len(payload), _PIECE_BYTES)
        ]
        for at, piece in enumerate(pieces):
            self._store.set(f"{self._name}/{number}/{at}", piece)  # type: ignore[arg-type]
        self._store.set(f"{self._name}/{number}", json.dumps([message, len(pieces)]))

    def read(self, timeout_s: float) -> tuple[dict[str, Any], bytes] | None:
        """The next message, or None if there was none in time.

        Raises:
            torch.distributed.DistError: the store is gone, and with it the other side.
        """
        key = f"{self._name}/{self._next}"
        # The store's own wait would print a warning at every timeout.
        deadline, pause_s = time.monotonic() + timeout_s, 0.001
        while not self._store.check([key]):
            if time.monotonic() > deadline:
                return None
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, 0.05)
        message, num_pieces = json.loads(self._store.get(key))
        keys = [f"{key}/{at}" for at in range(num_pieces)]
        payload = b"".join(self._store.get(piece) for piece in keys)
        self._next += 1
        if not self._keep:
            for used in [key, *keys]:
                self._store.delete_key(used)
            self._store.add(f"{self._name}/read", 1)
        return message, payload
