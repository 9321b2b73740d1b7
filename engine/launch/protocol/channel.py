"""Ordered messages over a key-value store.

Waiting here means polling the store, never blocking inside a collective.
"""

from __future__ import annotations

import json
import time
from typing import Any

import torch.distributed as dist

_PIECE_BYTES = 4 * 2**20  # the store refuses values above 8 MiB
_FULL_POLL_S = 0.005
_FIRST_POLL_S = 0.001
_LONGEST_POLL_S = 0.05


class Mailbox:
    """JSON messages in the order in which they were posted, each with an optional payload of bytes.

    Any number of writers, and either one reader or, with ``keep``, several that each read all
    messages.

    Args:
        store: The store that writers and readers share.
        name: Name of the mailbox in the store.
        keep: Leave read messages in the store for other readers.
    """

    def __init__(self, store: dist.Store, name: str, *, keep: bool = False) -> None:
        self._store = store
        self._name = name
        self._keep = keep
        self._next = 1

    def post(self, message: dict[str, Any], payload: bytes = b"", max_unread: int = 0) -> None:
        """Add a message.

        Args:
            message: The message, as JSON.
            payload: Bytes that go with it.
            max_unread: Wait while more messages than this are unread; 0 never waits.
        """
        number = self._store.add(f"{self._name}/posted", 1)
        while max_unread and number - self._store.add(f"{self._name}/read", 0) > max_unread:
            time.sleep(_FULL_POLL_S)
        pieces = [
            payload[start : start + _PIECE_BYTES] for start in range(0, len(payload), _PIECE_BYTES)
        ]
        for index, piece in enumerate(pieces):
            self._store.set(f"{self._name}/{number}/{index}", piece)  # type: ignore[arg-type]
        self._store.set(f"{self._name}/{number}", json.dumps([message, len(pieces)]))

    def read(self, timeout_s: float) -> tuple[dict[str, Any], bytes] | None:
        """The next message and its payload, or None after the timeout.

        Raises:
            torch.distributed.DistError: The store is gone, and with it the other side.
        """
        key = f"{self._name}/{self._next}"
        # The store's own wait prints a warning at every timeout.
        deadline, poll_s = time.monotonic() + timeout_s, _FIRST_POLL_S
        while not self._store.check([key]):
            if time.monotonic() > deadline:
                return None
            time.sleep(poll_s)
            poll_s = min(2 * poll_s, _LONGEST_POLL_S)
        message, num_pieces = json.loads(self._store.get(key))
        piece_keys = [f"{key}/{index}" for index in range(num_pieces)]
        payload = b"".join(self._store.get(piece_key) for piece_key in piece_keys)
        self._next += 1
        if not self._keep:
            for used_key in [key, *piece_keys]:
                self._store.delete_key(used_key)
            self._store.add(f"{self._name}/read", 1)
        return message, payload
