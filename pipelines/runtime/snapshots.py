"""Decides when the state of a denoising loop is saved, and saves it in the background.

Legend: B videos, C channels, F H W latent frames, height and width.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from longtake.configs.snapshot import SnapshotConfig
from longtake.errors import EngineError

if TYPE_CHECKING:
    import torch

MAX_TIME_SHARE = 0.01
"""Default maximum share of the denoising time that snapshots may take."""

_ASSUMED_LATENCY_S = 0.02
_ASSUMED_BYTES_PER_S = 200e6
"""Assumed cost of the first snapshot; later ones are measured."""

_TOKENS = "tokens."
"""Prefix of the names of a scheduler's tensors that belong to tokens."""


@dataclass(frozen=True)
class LoopState:
    """State of a denoising loop after a step, independent of the layout.

    It holds no random state: all noise is drawn from the request's seed before the first step.

    Attributes:
        steps_done: Number of completed steps.
        latents: ``[B, C, F, H, W]``, float32, on the CPU.
        scheduler: Result of :meth:`longtake.pipelines.runtime.stepper.Stepper.state`.
        tokens: Result of :meth:`longtake.pipelines.runtime.stepper.Stepper.token_state` of all
            ranks, as latents, ``[B, C, F, H, W]`` each, on the CPU.
    """

    steps_done: int
    latents: torch.Tensor
    scheduler: Mapping[str, torch.Tensor]
    tokens: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def tensors(self) -> dict[str, torch.Tensor]:
        """All tensors by name, as in a snapshot file."""
        tokens = {f"{_TOKENS}{name}": each for name, each in self.tokens.items()}
        return {"latents": self.latents, **self.scheduler, **tokens}

    @classmethod
    def of_tensors(cls, steps_done: int, tensors: Mapping[str, torch.Tensor]) -> LoopState:
        """The inverse of :meth:`tensors`."""
        scheduler, tokens = {}, {}
        for name, tensor in tensors.items():
            if name.startswith(_TOKENS):
                tokens[name.removeprefix(_TOKENS)] = tensor
            elif name != "latents":
                scheduler[name] = tensor
        return cls(steps_done, tensors["latents"], scheduler, tokens)


class Snapshots:
    """Schedules snapshots and writes them in the background.

    A snapshot is written while the next step is computed, and is complete at the end of that step.
    A failed write does not stop the rendering.

    Args:
        config: Interval between snapshots; by default they take 1 % of the time at most.
        latents_bytes: Size of the latents of all videos.
        write: Writes one snapshot; called on a thread.
        clock: Monotonic clock, in seconds.
        after_last_step: Whether to save the finished latents, too.

    Attributes:
        num_written: Number of snapshots written.
        blocked_s: Time that the loop waited for snapshots.
        failure: Message of the last failed write; empty if none failed.
    """

    def __init__(
        self,
        config: SnapshotConfig,
        latents_bytes: int,
        write: Callable[[LoopState], None],
        clock: Callable[[], float] = time.perf_counter,
        *,
        after_last_step: bool = True,
    ) -> None:
        self._config = config
        self.after_last_step = after_last_step
        self._write = write
        self._clock = clock
        self._executor = ThreadPoolExecutor(1, "longtake-snapshot")
        self._writing: Future[None] | None = None
        self._latents_bytes = latents_bytes
        self._blocked_before_s = 0.0
        self.num_written = 0
        self.blocked_s = 0.0
        self.failure = ""

    def begin(self, steps_done: int, num_states: int = 1) -> None:
        """Called before the loop starts.

        Args:
            steps_done: Number of steps completed by an earlier run.
            num_states: Tensors of the latents' size in a snapshot.
        """
        size = num_states * self._latents_bytes
        self._next_cost_s = _ASSUMED_LATENCY_S + size / _ASSUMED_BYTES_PER_S
        self._begun = self._last_at = self._clock()
        self._last_step = steps_done

    def due(self, done: int) -> bool:
        """Whether the state after step ``done`` should be saved."""
        steps, seconds, now = self._config.snapshot_steps, self._config.snapshot_s, self._clock()
        if steps is None and seconds is None:
            allowed_s = MAX_TIME_SHARE * (now - self._begun)
            return self.blocked_s + self._next_cost_s <= allowed_s
        by_steps = steps is not None and done - self._last_step >= steps
        return by_steps or (seconds is not None and now - self._last_at >= seconds)

    def save(self, gather: Callable[[], LoopState]) -> None:
        """Start saving the state that ``gather`` returns."""
        with self._blocking():
            state = gather()
            self._last_at, self._last_step = self._clock(), state.steps_done
            self._writing = self._executor.submit(self._write, state)

    def wait(self) -> None:
        """Wait until the last snapshot is written."""
        if self._writing is None:
            return
        with self._blocking():
            try:
                self._writing.result()
                self.num_written += 1
            except EngineError as error:
                self.failure = str(error)
        self._writing = None
        self._next_cost_s = self.blocked_s - self._blocked_before_s
        self._blocked_before_s = self.blocked_s

    def close(self) -> None:
        """Wait for the last snapshot, then end the thread."""
        self.wait()
        self._executor.shutdown()

    @contextmanager
    def _blocking(self) -> Iterator[None]:
        """Add the time of the enclosed block to ``blocked_s``."""
        begun = self._clock()
        yield
        self.blocked_s += self._clock() - begun
