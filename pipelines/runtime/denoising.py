"""The denoising loop over all ranks: its steps, its snapshots, and the final gather.

Legend: B videos, C channels, F H W latent frames, height and width, s this rank's tokens, P values
per token.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn

from longtake.errors import Stopped
from longtake.pipelines.finite import check_latents
from longtake.pipelines.layout import VideoLayout
from longtake.pipelines.loading.weights import all_gather_bytes
from longtake.pipelines.runtime.device_clock import DeviceClock
from longtake.pipelines.runtime.guidance import Guidance
from longtake.pipelines.runtime.progress import Progress
from longtake.pipelines.runtime.render_run import RenderRun
from longtake.pipelines.runtime.snapshots import LoopState
from longtake.pipelines.runtime.stages import stage
from longtake.pipelines.runtime.stepper import Stepper

_CONTINUE, _SNAPSHOT, _STOP = range(3)
"""What a rank requests after a step. Decision = max over ranks."""


@dataclass(frozen=True)
class DenoisingLoop:
    """The loop of one video. Its methods are collective: all ranks call them.

    Attributes:
        run: The run.
        layout: The video's tokens and their owners.
        guidance: The passes of a step.
        stepper: The scheduler, before the first step.
    """

    run: RenderRun
    layout: VideoLayout
    guidance: Guidance
    stepper: Stepper

    def resume(self, saved: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Take up a saved state, with the stepper at its step.

        Args:
            saved: The tensors of :class:`LoopState`, whole on every rank.

        Returns:
            The latents, ``[B, C, F, H, W]``.
        """
        state = LoopState.of_tensors(self.run.steps_done, saved)
        own = {name: self.layout.split(latents) for name, latents in state.tokens.items()}
        self.stepper.resume(state.steps_done, state.scheduler, own)
        return state.latents

    def denoise(self, latents: torch.Tensor) -> torch.Tensor:
        """Run the remaining steps over this rank's tokens, then gather once.

        Nothing is gathered between steps but for snapshots and traces.

        Args:
            latents: Noise, or the latents after ``run.steps_done`` steps, ``[B, C, F, H, W]``.

        Returns:
            The latents after the last step, ``[B, C, F, H, W]``, float32, on every rank.

        Raises:
            Stopped: On all ranks alike.
            EngineError: The latents are not finite, in a run that is not traced.
        """
        run, denoiser = self.run, self.run.pipeline.denoiser
        after_step = _AfterStep(self)
        after_step.begin()
        steps_of = Counter[nn.Module]()
        with stage(run.report, "denoising"), self._tracing(), denoiser.run_blocks.in_use():
            tokens = self.layout.split(latents).to(run.world.device)
            for step in self.stepper.steps(run.steps_done):
                velocity = self.guidance.velocity(denoiser, tokens, step, self.layout)
                tokens = self.stepper.step(velocity, step, tokens)
                steps_of[denoiser.running_module(step)] += 1
                after_step(step.index + 1, tokens)
            after_step.finish()
        num_passes = len(self.guidance.passes) // run.dims.cfg_degree
        run.report.bytes_sent["weights"] = num_passes * sum(
            count * all_gather_bytes(module) for module, count in steps_of.items()
        )
        with stage(run.report, "gathering"):
            latents = self.layout.gather(tokens)
        return latents if run.trace is not None else check_latents(latents)

    def save_finished(self, latents: torch.Tensor) -> None:
        """Save the latents to decode, if snapshots include them."""
        snapshots = self.run.snapshots
        if snapshots is not None and snapshots.after_last_step and self.run.trace is None:
            done = self.run.request.num_inference_steps
            snapshots.save(lambda: LoopState(done, latents.cpu(), self.stepper.state()))

    def state(self, done: int, tokens: torch.Tensor) -> LoopState:
        """The state after ``done`` steps, gathered from this rank's tokens ``[B, s, P]``."""
        remembered = self.stepper.token_state()
        return LoopState(
            done,
            self.layout.gather(tokens).cpu(),
            self.stepper.state(),
            {name: self.layout.gather(each).cpu() for name, each in remembered.items()},
        )

    def _tracing(self) -> AbstractContextManager[None]:
        """Records the blocks of a traced run."""
        if self.run.trace is None:
            return nullcontext()
        denoiser = self.run.pipeline.denoiser
        passes = self.guidance.passes
        return self.run.trace.record_blocks(denoiser, denoiser.run_blocks, passes, self.layout)


class _AfterStep:
    """Reports, traces, saves a snapshot or stops after each step, on all ranks together.

    Args:
        loop: The loop.
    """

    def __init__(self, loop: DenoisingLoop) -> None:
        self._loop = loop
        self._run = loop.run
        self._total = self._run.request.num_inference_steps
        self._clock = DeviceClock(self._run.world.device, self._report)

    def begin(self) -> None:
        """Called before the first step."""
        self._report(self._run.steps_done)
        if self._run.snapshots is not None:
            size = 1 + self._loop.stepper.num_token_states
            self._run.snapshots.begin(self._run.steps_done, size)

    def __call__(self, done: int, tokens: torch.Tensor) -> None:
        """Called after step ``done`` with this rank's tokens, ``[B, s, P]``.

        Raises:
            Stopped: On all ranks alike.
        """
        run, loop = self._run, self._loop
        if run.snapshots is not None:
            run.snapshots.wait()
        self._clock.step(done)
        if run.trace is not None:
            run.trace.after_step(done, loop.layout.gather(tokens))
        decision = run.world.all_reduce_max(self._decide(done))
        if decision != _CONTINUE and run.snapshots is not None and done < self._total:
            self._clock.finish()  # a snapshot's cost excludes the step that the GPU still computes
            run.snapshots.save(lambda: loop.state(done, tokens))
        if decision == _STOP:
            raise Stopped(f"stopped after step {done} of {self._total}")

    def finish(self) -> None:
        """Called after the last step: wait for the device."""
        self._clock.finish()

    def _decide(self, done: int) -> int:
        """This rank's own decision after step ``done``."""
        run = self._run
        if run.stop_requested():
            return _STOP
        due = run.snapshots is not None and run.world.rank == 0 and run.snapshots.due(done)
        return _SNAPSHOT if due else _CONTINUE

    def _report(self, done: int) -> None:
        self._run.on_progress(Progress("denoising", done, self._total))
