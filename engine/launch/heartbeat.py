"""Signs of life: each rank counts on, in a thread of its own, and its engine watches the counts."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Mapping

import torch.distributed as dist

EVERY_S = 1.0


def give_signs_of_life(rank: int, port: int) -> None:
    """Count on under this rank's name, for as long as the process runs.

    A connection of its own: one that waits for an answer is held by its thread.
    """
    store = dist.TCPStore("127.0.0.1", port, is_master=False, wait_for_workers=False)

    def count() -> None:
        number = 0
        with contextlib.suppress(dist.DistError):  # the engine is gone, and so is this process soon
            while True:
                number += 1
                store.set(f"beat/{rank}", str(number))
                time.sleep(EVERY_S)

    threading.Thread(target=count, daemon=True).start()


class Heartbeats:
    """For how long each rank has given none, counted only while someone looks: an engine that
    itself stood still for a while, with the whole machine, blames nobody.

    Args:
        num_ranks: that are watched.
    """

    def __init__(self, num_ranks: int) -> None:
        self._last: dict[int, bytes] = {}
        self._silent_s = dict.fromkeys(range(num_ranks), 0.0)
        self._looked_at: float | None = None

    def silent(self, beats: Mapping[int, bytes], now: float) -> dict[int, float]:
        """Seconds without a sign, by rank; of those that have ever given one.

        Args:
            beats: the last of each rank.
            now: seconds that never go back.
        """
        passed = 0.0 if self._looked_at is None else min(now - self._looked_at, EVERY_S)
        self._looked_at = now
        for rank, beat in beats.items():
            moved = self._last.get(rank) != beat
            self._silent_s[rank] = 0.0 if moved else self._silent_s[rank] + passed
            self._last[rank] = beat
        return {rank: self._silent_s[rank] for rank in beats}
