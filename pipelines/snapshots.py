"""Saves the state of a denoising loop, so that it can resume.

Legend: B videos, C channels, F H W latent frames, height and width.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from longtake.configs.snapshot import SnapshotConfig
from longtake.errors import EngineError

if TYPE_CHECKING:
    import torch

MOST_OF_THE_TIME = 0.01
"""Default share of the denoising time that snapshots may take."""

_FIRST_GUESS_S = 0.02
_BYTES_A_SECOND = 200e6
"""Assumed cost of a snapshot before one was measured."""


@dataclass(frozen=True)
class LoopState:
    """A denoising loop between two steps, or after the last, of no layout.

    Nothing random is in it: all noise is drawn before the first step, of the request's seed.

    Attributes:
        steps_done: of the loop.
        latents: ``[B, C, F, H, W]``, float32, on the CPU.
        scheduler: what :meth:`longtake.pipelines.base.Stepper.state` gave.
    """

    steps_done: int
    latents: torch.Tensor
    scheduler: dict[str, torch.Tensor]


class Snapshots:
    """Decides, on rank 0, when the state of a loop is kept, and has it written beside the next
    step, at whose end it is there for sure. One that cannot be written stops no rendering.

    Args:
        config: how often.
        latents_bytes: of all videos.
        write: writes one.
        clock: seconds that never go back.
        at_the_end: keep the finished latents, too.

    Attributes:
        taken: so many were written so far.
        seconds: that the loop stood still for them so far.
        failure: why the last one that could not be written could not.
    """

    def __init__(
        self,
        config: SnapshotConfig,
        latents_bytes: int,
        write: Callable[[LoopState], None],
        clock: Callable[[], float] = time.perf_counter,
        *,
        at_the_end: bool = True,
    ) -> None:
        self._config = config
        self.at_the_end = at_the_end
        self._write = write
        self._clock = clock
        self._thread = ThreadPoolExecutor(1, "longtake-snapshot")
        self._writing: Future[None] | None = None
        self._next_cost_s = _FIRST_GUESS_S + latents_bytes / _BYTES_A_SECOND
        self._spent_before_s = 0.0
        self.taken = 0
        self.seconds = 0.0
        self.failure = ""

    def begin(self, steps_done: int) -> None:
        """Called before the loop starts, with the number of steps done by an earlier run."""
        self._begun = self._last_at = self._clock()
        self._last_step = steps_done

    def due(self, done: int) -> bool:
        """Whether the state after step ``done`` should be saved."""
        steps, seconds, now = self._config.snapshot_steps, self._config.snapshot_s, self._clock()
        if steps is None and seconds is None:
            allowed_s = MOST_OF_THE_TIME * (now - self._begun)
            return self.seconds + self._next_cost_s <= allowed_s
        by_steps = steps is not None and done - self._last_step >= steps
        return by_steps or (seconds is not None and now - self._last_at >= seconds)

    def take(self, gather: Callable[[], LoopState]) -> None:
        """Save the state that ``gather`` returns, in the background."""
        with self._standing_still():
            state = gather()
            self._last_at, self._last_step = self._clock(), state.steps_done
            self._writing = self._thread.submit(self._write, state)

    def settle(self) -> None:
        """Wait until the last snapshot is written."""
        if self._writing is None:
            return
        with self._standing_still():
            try:
                self._writing.result()
                self.taken += 1
            except EngineError as error:
                self.failure = str(error)
        self._writing = None
        self._next_cost_s = self.seconds - self._spent_before_s
        self._spent_before_s = self.seconds

    def close(self) -> None:
        """Wait for the last snapshot, then end the writing thread."""
        self.settle()
        self._thread.shutdown()

    @contextmanager
    def _standing_still(self) -> Iterator[None]:
        begun = self._clock()
        yield
        self.seconds += self._clock() - begun
