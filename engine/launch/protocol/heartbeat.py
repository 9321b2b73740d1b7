"""Heartbeats: each rank counts up in a separate thread, and the engine watches the counts."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Mapping

import torch.distributed as dist

from longtake.engine.launch.protocol.messages import HEARTBEAT, rank_key

INTERVAL_S = 1.0


def start_heartbeat(store: dist.Store, rank: int) -> None:
    """Count up under this rank's key for as long as the process runs.

    Args:
        store: A connection that nothing else uses: a thread that waits for an answer blocks its
            connection.
        rank: This process's rank.
    """

    def count() -> None:
        number = 0
        with contextlib.suppress(dist.DistError):  # the engine is gone; this process ends soon
            while True:
                number += 1
                store.set(rank_key(HEARTBEAT, rank), str(number))
                time.sleep(INTERVAL_S)

    threading.Thread(target=count, daemon=True).start()


def read_heartbeats(store: dist.Store, num_ranks: int) -> dict[int, bytes]:
    """The last heartbeat by rank, of the ranks that have sent one."""
    keys = {rank: rank_key(HEARTBEAT, rank) for rank in range(num_ranks)}
    return {rank: store.get(key) for rank, key in keys.items() if store.check([key])}


class HeartbeatMonitor:
    """Measures how long each rank has been silent.

    At most ``INTERVAL_S`` of the time between two checks counts: an engine that was suspended
    together with its ranks blames none of them.

    Args:
        num_ranks: Number of ranks.
    """

    def __init__(self, num_ranks: int) -> None:
        self._last: dict[int, bytes] = {}
        self._silent_s = dict.fromkeys(range(num_ranks), 0.0)
        self._checked_at: float | None = None

    def silent_s(self, heartbeats: Mapping[int, bytes], now: float) -> dict[int, float]:
        """Seconds since the last new heartbeat, by rank.

        Args:
            heartbeats: The last heartbeat by rank, as :func:`read_heartbeats` returns it.
            now: Monotonic time in seconds.
        """
        passed_s = 0.0 if self._checked_at is None else min(now - self._checked_at, INTERVAL_S)
        self._checked_at = now
        for rank, heartbeat in heartbeats.items():
            is_new = self._last.get(rank) != heartbeat
            self._silent_s[rank] = 0.0 if is_new else self._silent_s[rank] + passed_s
            self._last[rank] = heartbeat
        return {rank: self._silent_s[rank] for rank in heartbeats}
