"""A small HunyuanVideo for the denoising benchmark, and a step of it in diffusers.

45 M parameters, 8 heads x 64, 2 double- and 4 single-stream blocks. Latents are 9 x 40 x 40; text
is 64 tokens, of which 40 are not padding. Peers get padded text with a mask, as in their pipelines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, HunyuanVideoTransformer3DModel

from benchmarks.denoise.inputs import NUM_STEPS, Inputs
from longtake.pipelines.family import Streams
from longtake.pipelines.models.hunyuan_video.transformer.denoiser import HunyuanVideoDenoiser
from longtake.pipelines.runtime.guidance import Guidance
from longtake.pipelines.runtime.stepper import SchedulerStepper, Stepper
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


GUIDANCE_SCALE = 6.016
"""1000 times this scale is exact in bfloat16, to which diffusers rounds it; longtake does not."""


@dataclass(kw_only=True)
class HunyuanVideoInputs(Inputs):
    """HunyuanVideo with embedded guidance: one pass and Euler's method.

    Attributes:
        text: Text embeddings, padded, ``[1, tokens, width]``.
        pooled: Pooled text embedding, ``[1, width]``.
        real_text: Number of tokens of ``text`` that are not padding.
    """

    num_passes = 1
    description = f"{GRID.num_tokens} video tokens, {REAL_TEXT} text tokens, one pass a step, Euler"

    text: torch.Tensor
    pooled: torch.Tensor
    real_text: int = REAL_TEXT

    @classmethod
    def make(cls, dtype: torch.dtype, device: torch.device) -> HunyuanVideoInputs:
        """Random weights and inputs, identical on every rank."""
        torch.manual_seed(0)
        model = HunyuanVideoTransformer3DModel(**MODEL)
        model = model.eval().requires_grad_(False).to(device, dtype)
        generator = torch.Generator().manual_seed(1)
        latents, text, pooled = (
            torch.randn(shape, generator=generator).to(device)
            for shape in (GRID.shape, (1, PADDED_TEXT, TEXT_WIDTH), (1, POOLED_WIDTH))
        )
        text[:, REAL_TEXT:] = 0
        return cls(
            model=model,
            latents=latents,
            scheduler=euler(device),
            guidance_scale=GUIDANCE_SCALE,
            grid=GRID,
            text=text.to(dtype),
            pooled=pooled.to(dtype),
        )

    def velocity(self, timestep: torch.Tensor) -> torch.Tensor:
        """The velocity in diffusers, with padded text and a mask."""
        dtype, device = self.text.dtype, self.text.device
        real = torch.arange(self.text.shape[1], device=device) < self.real_text
        velocity: torch.Tensor = self.model(
            hidden_states=self.latents.to(dtype),
            timestep=timestep.expand(1),
            encoder_hidden_states=self.text,
            encoder_attention_mask=real[None].to(dtype),
            pooled_projections=self.pooled,
            guidance=torch.full((1,), self.guidance_scale * 1000, device=device, dtype=dtype),
            return_dict=False,
        )[0]
        return velocity

    def denoiser(self) -> HunyuanVideoDenoiser:
        """longtake's denoiser of the model, as loading leaves it; called once."""
        denoiser = HunyuanVideoDenoiser(self.model)
        denoiser.chunk_feed_forwards()
        return denoiser

    def streams(self) -> Sequence[Streams]:
        """The text without its padding, and the pooled text."""
        return [{"text": self.text[:, : self.real_text], "pooled": self.pooled}]

    def guidance(self, passes: Sequence[Any]) -> Guidance:
        """The only pass; its guidance scale is embedded."""
        return Guidance(passes)

    def stepper(self) -> Stepper:
        """longtake's stepper of Euler's method."""
        return SchedulerStepper(self.scheduler)


def euler(device: torch.device) -> FlowMatchEulerDiscreteScheduler:
    """The scheduler with its timesteps set."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=7.0)
    scheduler.set_timesteps(NUM_STEPS, device=device)
    scheduler.set_begin_index(0)
    return scheduler
