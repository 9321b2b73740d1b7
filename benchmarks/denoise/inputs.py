"""What the denoising benchmark knows of a model family: a model, and the inputs of one video.

Legend: C channels, F H W latent frames, height and width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.distributed as dist

from longtake.configs.request import ResolvedRequest
from longtake.parallel import ParallelDims, World
from longtake.pipelines.family import Denoiser, Streams
from longtake.pipelines.layout import VideoLayout
from longtake.pipelines.runtime.guidance import Guidance
from longtake.pipelines.runtime.stepper import Stepper
from longtake.pipelines.spec import LatentGrid

NUM_STEPS = 1000
"""Steps of the schedule, of which a contest takes the first ones."""

Step = Callable[[], torch.Tensor]
"""Runs the next step; returns the guided velocity of this rank's tokens or of all tokens."""


@dataclass(kw_only=True)
class Inputs(ABC):
    """A model with random weights and the inputs of one video, the same for every contestant.

    Attributes:
        num_passes: Transformer passes of a step.
        description: Number of tokens and what a step does, for the report.
        model: diffusers' transformer.
        latents: Noise of shape ``grid.shape``, float32.
        scheduler: diffusers' scheduler, with its timesteps set.
        guidance_scale: Guidance scale, embedded or of classifier-free guidance.
        grid: Latent grid, with ``[1, C, F, H, W]`` latents.
    """

    num_passes: ClassVar[int]
    description: ClassVar[str]

    model: Any
    latents: torch.Tensor
    scheduler: Any
    guidance_scale: float
    grid: LatentGrid

    @classmethod
    @abstractmethod
    def make(cls, dtype: torch.dtype, device: torch.device) -> Inputs:
        """Random weights and inputs, identical on every rank."""

    @abstractmethod
    def velocity(self, timestep: torch.Tensor) -> torch.Tensor:
        """The guided velocity of the latents as diffusers' pipeline computes it, ``grid.shape``."""

    @abstractmethod
    def denoiser(self) -> Denoiser[Any]:
        """longtake's denoiser of the model, whose attention it replaces."""

    @abstractmethod
    def streams(self) -> Sequence[Streams]:
        """longtake's conditioning of each pass."""

    @abstractmethod
    def guidance(self, passes: Sequence[Any]) -> Guidance:
        """longtake's guidance over prepared passes."""

    @abstractmethod
    def stepper(self) -> Stepper:
        """longtake's stepper of the scheduler."""

    def request(self) -> ResolvedRequest:
        """A request for a video of this size."""
        _, _, frames, rows, columns = self.grid.shape
        return ResolvedRequest(
            prompt="benchmark",
            height=8 * rows,
            width=8 * columns,
            num_frames=4 * (frames - 1) + 1,
            num_inference_steps=NUM_STEPS,
            guidance_scale=self.guidance_scale,
            flow_shift=7.0,
            seed=0,
            fps=24,
            decode="tiled",
            decode_tile_size=(16, 256, 256),
            decode_tile_stride=(12, 192, 192),
            max_sequence_length=512,
        )

    def reference_step(self) -> Step:
        """A step as in diffusers' pipeline, on the whole latents."""
        timesteps = iter(self.scheduler.timesteps)

        def step() -> torch.Tensor:
            timestep = next(timesteps)
            velocity = self.velocity(timestep)
            stepped = self.scheduler.step(velocity, timestep, self.latents, return_dict=False)
            self.latents = stepped[0]
            return self.grid.patchify(velocity)

        return step


def longtake_step(inputs: Inputs, degrees: dict[str, int]) -> Step:
    """longtake's step, on all ranks: passes, guidance, scheduler and the flag that stops a job."""
    group = dist.group.WORLD if dist.is_initialized() else None
    world, dims = World(inputs.latents.device, group, group), ParallelDims(**degrees)
    layout = VideoLayout.of(inputs.grid, dims, world.mesh(dims))
    denoiser, request, stepper = inputs.denoiser(), inputs.request(), inputs.stepper()
    guidance = inputs.guidance(
        [denoiser.prepare(streams, layout, request, {}) for streams in inputs.streams()]
    )
    tokens, steps = layout.split(inputs.latents), stepper.steps()

    def step() -> torch.Tensor:
        nonlocal tokens
        current = next(steps)
        velocity = guidance.velocity(denoiser, tokens, current, layout)
        tokens = stepper.step(velocity, current, tokens)
        world.any_rank(False)
        return velocity

    return step
