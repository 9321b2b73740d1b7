"""Samplers over the tokens of one video, and the state that snapshots save of them.

Legend: B videos, s this rank's tokens, P values per token.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Step:
    """One step of a denoising loop.

    Attributes:
        index: Index of the step, from 0.
        timestep: The timestep, a scalar on the device.
        value: The same on the host, for decisions that all ranks take alike.
    """

    index: int
    timestep: torch.Tensor
    value: float


class Stepper(ABC):
    """Steps the tokens of one video from noise to latents, in float32.

    A step is elementwise, so it works on a rank's tokens as on the whole video. What a stepper
    remembers of the tokens is sharded like them.

    Attributes:
        timesteps: The timestep of each step, on the device.
        num_token_states: Largest number of tensors in :meth:`token_state`.
    """

    timesteps: torch.Tensor
    num_token_states: int = 0

    @abstractmethod
    def step(self, velocity: torch.Tensor, step: Step, tokens: torch.Tensor) -> torch.Tensor:
        """Advance the tokens by one step.

        Args:
            velocity: ``[B, s, P]``, any dtype.
            step: The next of :meth:`steps`.
            tokens: ``[B, s, P]``, float32.

        Returns:
            ``[B, s, P]``, float32.
        """

    def steps(self, done: int = 0) -> Iterator[Step]:
        """The steps after the first ``done``."""
        timesteps = self.timesteps
        values = timesteps.tolist()
        for index in range(done, len(values)):
            yield Step(index, timesteps[index], float(values[index]))

    def state(self) -> dict[str, torch.Tensor]:
        """State for :meth:`resume` that is the same on all ranks, and not given by the request."""
        return {}

    def token_state(self) -> dict[str, torch.Tensor]:
        """State for :meth:`resume` that belongs to this rank's tokens, ``[B, s, P]`` each.

        The names are the same on all ranks.
        """
        return {}

    def resume(self, done: int, state: Tensors, token_state: Tensors) -> None:
        """Continue after ``done`` completed steps; nothing to do for a stepper without state.

        Args:
            done: Number of completed steps.
            state: A saved :meth:`state`.
            token_state: A saved :meth:`token_state`, of this rank's tokens in the present layout.
        """
        return None


class SchedulerStepper(Stepper):
    """Steps a scheduler of diffusers that remembers nothing, such as Euler's.

    Args:
        scheduler: The scheduler with its timesteps set, not shared with other videos.
    """

    def __init__(self, scheduler: Any) -> None:
        self._scheduler, self.timesteps = scheduler, scheduler.timesteps
        scheduler.set_begin_index(0)

    def state(self) -> dict[str, torch.Tensor]:
        """The noise levels and the timesteps."""
        return {"sigmas": self._scheduler.sigmas, "timesteps": self._scheduler.timesteps}

    def resume(self, done: int, state: Tensors, token_state: Tensors) -> None:
        """Continue after ``done`` completed steps; see :meth:`Stepper.resume`."""
        for name in ("sigmas", "timesteps"):  # each on the device where the scheduler computes it
            device = getattr(self._scheduler, name).device
            setattr(self._scheduler, name, state[name].to(device))
        self.timesteps = self._scheduler.timesteps
        self._scheduler.set_begin_index(done)

    def step(self, velocity: torch.Tensor, step: Step, tokens: torch.Tensor) -> torch.Tensor:
        """Advance the tokens by the scheduler's step; see :meth:`Stepper.step`."""
        stepped: torch.Tensor = self._scheduler.step(
            velocity.float(), step.timestep, tokens, return_dict=False
        )[0]
        return stepped


class UniPCStepper(SchedulerStepper):
    """Steps UniPCMultistepScheduler, which remembers the last outputs and the last sample.

    The order of a step is min(solver order, steps done + 1, steps left), so it follows from the
    number of steps and is not saved.
    """

    def __init__(self, scheduler: Any) -> None:
        super().__init__(scheduler)
        # The last sample, and an output for each order of the solver.
        self.num_token_states = 1 + int(scheduler.config.solver_order)

    def token_state(self) -> dict[str, torch.Tensor]:
        """The last sample and the last converted outputs, the latest as ``output_1``."""
        scheduler, saved = self._scheduler, {}
        if scheduler.last_sample is not None:
            saved["last_sample"] = scheduler.last_sample
        for age, output in enumerate(reversed(scheduler.model_outputs), start=1):
            if output is not None:
                saved[f"output_{age}"] = output
        return saved

    def resume(self, done: int, state: Tensors, token_state: Tensors) -> None:
        """Continue after ``done`` completed steps; see :meth:`Stepper.resume`."""
        super().resume(done, state, token_state)
        scheduler = self._scheduler
        scheduler.last_sample = token_state["last_sample"]
        for age in range(1, min(done, scheduler.config.solver_order) + 1):
            scheduler.model_outputs[-age] = token_state[f"output_{age}"]
            scheduler.timestep_list[-age] = scheduler.timesteps[done - age]
        scheduler.lower_order_nums = min(done, scheduler.config.solver_order)
        scheduler.this_order = self._order_of(done - 1)

    def _order_of(self, index: int) -> int:
        """The order of a step, as the scheduler computes it."""
        config, total = self._scheduler.config, len(self._scheduler.timesteps)
        order = int(config.solver_order)
        if config.lower_order_final:
            order = min(order, total - index)
        return min(order, index + 1)
