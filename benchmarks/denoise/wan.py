"""A small Wan for the denoising benchmark, and a step of it in diffusers.

The architecture of Wan 2.1 with 8 heads x 64 and 6 layers. Latents are 9 x 40 x 40; text is 512
tokens, of which all but 40 of the prompt and 120 of the negative prompt are zeros, as wide as
UMT5-XXL's. Attention reads all of them, in longtake as in its peers: the model has no mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import UniPCMultistepScheduler, WanTransformer3DModel

from benchmarks.denoise.inputs import NUM_STEPS, Inputs
from longtake.pipelines.family import Streams
from longtake.pipelines.models.wan.tensors import FLOAT32_WEIGHTS
from longtake.pipelines.models.wan.transformer.denoiser import HIGH_NOISE, WanDenoiser
from longtake.pipelines.runtime.guidance import Guidance, classifier_free
from longtake.pipelines.runtime.stepper import UniPCStepper
from longtake.pipelines.spec import LatentGrid

GRID = LatentGrid((1, 16, 9, 40, 40), (1, 2, 2))
TEXT_TOKENS, TEXT_WIDTH = 512, 4096
PROMPT_TOKENS, NEGATIVE_TOKENS = 40, 120
MODEL: dict[str, Any] = dict(
    num_attention_heads=8,
    attention_head_dim=64,
    num_layers=6,
    ffn_dim=3072,
    text_dim=TEXT_WIDTH,
)


@dataclass(kw_only=True)
class WanInputs(Inputs):
    """Wan 2.1 with classifier-free guidance: two passes and UniPC of order 2.

    Attributes:
        texts: Embeddings of the prompt and of the negative prompt, padded with zeros,
            ``[1, tokens, width]`` each.
    """

    num_passes = 2
    description = (
        f"{GRID.num_tokens} video tokens, {TEXT_TOKENS} text tokens, two passes a step, UniPC"
    )

    texts: tuple[torch.Tensor, torch.Tensor]

    @classmethod
    def make(cls, dtype: torch.dtype, device: torch.device) -> WanInputs:
        """Random weights and inputs, identical on every rank."""
        torch.manual_seed(0)
        model = WanTransformer3DModel(**MODEL).eval().requires_grad_(False).to(device)
        for name, weights in model.named_parameters():
            if FLOAT32_WEIGHTS.search(name) is None:  # as diffusers' from_pretrained
                weights.data = weights.data.to(dtype)
        generator = torch.Generator().manual_seed(1)
        latents, prompt, negative = (
            torch.randn(shape, generator=generator).to(device)
            for shape in (GRID.shape, *2 * [(1, TEXT_TOKENS, TEXT_WIDTH)])
        )
        prompt[:, PROMPT_TOKENS:] = 0
        negative[:, NEGATIVE_TOKENS:] = 0
        return cls(
            model=model,
            latents=latents,
            scheduler=unipc(device),
            guidance_scale=5.0,
            grid=GRID,
            texts=(prompt.to(dtype), negative.to(dtype)),
        )

    def velocity(self, timestep: torch.Tensor) -> torch.Tensor:
        """The guided velocity in diffusers: a pass for each text."""
        positive, negative = (self._pass(text, timestep) for text in self.texts)
        return negative + self.guidance_scale * (positive - negative)

    def _pass(self, text: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        velocity: torch.Tensor = self.model(
            hidden_states=self.latents.to(text.dtype),
            timestep=timestep.expand(1),
            encoder_hidden_states=text,
            return_dict=False,
        )[0]
        return velocity

    def denoiser(self) -> WanDenoiser:
        """longtake's denoiser of the model, as loading leaves it; called once."""
        denoiser = WanDenoiser({HIGH_NOISE: self.model})
        denoiser.chunk_feed_forwards()
        return denoiser

    def streams(self) -> Sequence[Streams]:
        """The text of each pass, padded."""
        return [{"text": text} for text in self.texts]

    def guidance(self, passes: Sequence[Any]) -> Guidance:
        """Classifier-free guidance."""
        return Guidance(passes, classifier_free(lambda step: self.guidance_scale))

    def stepper(self) -> UniPCStepper:
        """longtake's stepper of UniPC."""
        return UniPCStepper(self.scheduler)


def unipc(device: torch.device) -> UniPCMultistepScheduler:
    """The scheduler of Wan 2.1 with its timesteps set."""
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    scheduler.set_timesteps(NUM_STEPS, device=device)
    scheduler.set_begin_index(0)
    return scheduler
