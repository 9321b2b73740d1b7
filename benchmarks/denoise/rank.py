"""What a rank does in the denoising benchmark.

The model is a small HunyuanVideo transformer: 40 M parameters, 8 heads x 64, 2 double- and 4
single-stream blocks. Latents are 9 x 40 x 40; text is 64 tokens, of which 40 are not padding. A
step is the transformer and the scheduler. Peers get padded text with a mask, as in their pipelines.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from diffusers import FlowMatchEulerDiscreteScheduler, HunyuanVideoTransformer3DModel

from benchmarks.contest import Contestant, Prepared, rank_device
from benchmarks.memory import peak_memory
from benchmarks.traffic import TrafficMeter
from longtake.configs.request import ResolvedRequest
from longtake.parallel import ParallelDims, TokenShards, World
from longtake.pipelines.layout import VideoLayout
from longtake.pipelines.models.hunyuan_video.transformer.denoiser import HunyuanVideoDenoiser
from longtake.pipelines.runtime.stepper import SchedulerStepper
from longtake.pipelines.spec import LatentGrid

GRID = LatentGrid((1, 16, 9, 40, 40), (1, 2, 2))
PADDED_TEXT, REAL_TEXT = 64, 40
TEXT_WIDTH, POOLED_WIDTH = 512, 256
MODEL: dict[str, Any] = dict(
    num_attention_heads=8,
    attention_head_dim=64,
    num_layers=2,
    num_single_layers=4,
    text_embed_dim=TEXT_WIDTH,
    pooled_projection_dim=POOLED_WIDTH,
    rope_axes_dim=(16, 24, 24),
)

Step = Callable[[], torch.Tensor]
"""Runs one step; returns the velocity of this rank's tokens or of all tokens."""


@dataclass
class Inputs:
    """Model and inputs, identical on every rank and for every contestant.

    Attributes:
        model: The transformer.
        latents: Noisy latents of shape ``grid.shape``, float32.
        text: Text embeddings, padded, ``[1, tokens, width]``.
        pooled: Pooled text embedding, ``[1, width]``.
        scheduler: The scheduler, with its timesteps set.
        guidance_scale: Embedded guidance scale.
        real_text: Number of tokens of ``text`` that are not padding.
        grid: Latent grid.
    """

    model: HunyuanVideoTransformer3DModel
    latents: torch.Tensor
    text: torch.Tensor
    pooled: torch.Tensor
    scheduler: FlowMatchEulerDiscreteScheduler
    guidance_scale: float = 6.0
    real_text: int = REAL_TEXT
    grid: LatentGrid = GRID

    @classmethod
    def make(cls, dtype: torch.dtype, device: torch.device) -> Inputs:
        """Random weights and inputs."""
        torch.manual_seed(0)
        model = HunyuanVideoTransformer3DModel(**MODEL)
        model = model.eval().requires_grad_(False).to(device, dtype)
        scheduler = FlowMatchEulerDiscreteScheduler(shift=7.0)
        scheduler.set_timesteps(1000, device=device)
        scheduler.set_begin_index(0)
        generator = torch.Generator().manual_seed(1)
        latents, text, pooled = (
            torch.randn(shape, generator=generator).to(device)
            for shape in (GRID.shape, (1, PADDED_TEXT, TEXT_WIDTH), (1, POOLED_WIDTH))
        )
        text[:, REAL_TEXT:] = 0
        return cls(model, latents, text.to(dtype), pooled.to(dtype), scheduler)

    def reference_step(self) -> Step:
        """A step as in diffusers' pipeline: whole latents, padded text and a mask."""
        dtype = self.text.dtype
        real = torch.arange(self.text.shape[1]) < self.real_text
        mask = real[None].to(self.text.device, dtype)
        guidance = torch.full((1,), self.guidance_scale * 1000, device=mask.device, dtype=dtype)
        timesteps = iter(self.scheduler.timesteps)

        def step() -> torch.Tensor:
            timestep = next(timesteps)
            velocity: torch.Tensor = self.model(
                hidden_states=self.latents.to(dtype),
                timestep=timestep.expand(1),
                encoder_hidden_states=self.text,
                encoder_attention_mask=mask,
                pooled_projections=self.pooled,
                guidance=guidance,
                return_dict=False,
            )[0]
            self.scheduler.step(velocity, timestep, self.latents, return_dict=False)
            return self.grid.patchify(velocity)

        return step


def longtake_step(inputs: Inputs, degrees: dict[str, int]) -> Step:
    """longtake's step, on all ranks."""
    group = dist.group.WORLD if dist.is_initialized() else None
    world = World(inputs.latents.device, group, group)
    dims = ParallelDims(**degrees)
    mesh, grid = world.mesh(dims), inputs.grid
    request = ResolvedRequest(
        prompt="benchmark",
        height=8 * grid.shape[3],
        width=8 * grid.shape[4],
        num_frames=4 * (grid.shape[2] - 1) + 1,
        num_inference_steps=1000,
        guidance_scale=inputs.guidance_scale,
        flow_shift=7.0,
        seed=0,
        fps=24,
        decode="tiled",
        decode_tile_size=(16, 256, 256),
        decode_tile_stride=(12, 192, 192),
        max_sequence_length=inputs.text.shape[1],
    )
    denoiser = HunyuanVideoDenoiser(inputs.model)
    streams = {"text": inputs.text[:, : inputs.real_text], "pooled": inputs.pooled}
    layout = VideoLayout.of(grid, dims, mesh)
    inputs_of_pass = denoiser.prepare(streams, layout, request, {})
    tokens = layout.split(inputs.latents)
    stepper = SchedulerStepper(inputs.scheduler)
    steps = stepper.steps()

    def step() -> torch.Tensor:
        current = next(steps)
        velocity: torch.Tensor = denoiser(tokens, current, inputs_of_pass)
        stepper.step(velocity, current, tokens)
        world.any_rank(False)
        return velocity

    return step


def diffusers_step(inputs: Inputs, degrees: dict[str, int]) -> Step:
    """diffusers' step, on one rank."""
    return inputs.reference_step()


def cache_dit_step(inputs: Inputs, degrees: dict[str, int]) -> Step:
    """A step with cache-dit's context parallelism."""
    from cache_dit.distributed import ParallelismConfig
    from cache_dit.distributed.dispatch import enable_parallelism

    ulysses, ring = degrees.get("ulysses_degree", 1), degrees.get("ring_degree", 1)
    enable_parallelism(
        inputs.model,
        ParallelismConfig(
            ulysses_size=ulysses if ulysses > 1 else None, ring_size=ring if ring > 1 else None
        ),
    )
    return inputs.reference_step()


STEPS: dict[str, Callable[[Inputs, dict[str, int]], Step]] = {
    "longtake": longtake_step,
    "diffusers": diffusers_step,
    "cache-dit": cache_dit_step,
}


def prepare(contestant: Contestant, dtype: torch.dtype, device_type: str) -> Prepared:
    """Create the model and measure error, traffic and memory of a step.

    Returns:
        A step, and its figures: ``error``, the largest difference from diffusers' velocity on one
        rank; ``bytes_sent``; ``collectives``; ``peak_bytes``; ``parameters``.
    """
    device = rank_device(device_type)
    expected = Inputs.make(dtype, device).reference_step()()
    inputs = Inputs.make(dtype, device)
    step = STEPS[contestant.package](inputs, contestant.degrees)
    with TrafficMeter() as meter:  # the first step includes lazy loading and persistent buffers
        velocity = step()
    with peak_memory(device_type) as peak_bytes:
        step()
    if velocity.shape != expected.shape:
        dims = ParallelDims(**contestant.degrees)
        (own,) = TokenShards.even(GRID.num_tokens, dims).ranges[dist.get_rank()]
        expected = expected[:, own.start : own.stop]
    return step, {
        "error": (velocity - expected).abs().max().item(),
        "bytes_sent": meter.bytes_sent,
        "collectives": meter.collectives,
        "peak_bytes": peak_bytes(),
        "parameters": sum(weights.numel() for weights in inputs.model.parameters()),
    }
