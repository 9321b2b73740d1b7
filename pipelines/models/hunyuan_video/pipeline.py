"""HunyuanVideo text to video, loaded on one rank."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, HunyuanVideoTransformer3DModel

from longtake.configs.request import ResolvedRequest
from longtake.parallel import World
from longtake.pipelines.codec.picture import Pixels
from longtake.pipelines.family import Streams, VideoPipeline
from longtake.pipelines.loading.build import build_module
from longtake.pipelines.loading.checkpoint import Checkpoint
from longtake.pipelines.loading.plan import ComponentPlan, LoadPlan
from longtake.pipelines.loading.transformer import Weights, load_transformer
from longtake.pipelines.models.hunyuan_video.codec.autoencoder import HunyuanVideoCodec
from longtake.pipelines.models.hunyuan_video.options import TextToVideoOptions
from longtake.pipelines.models.hunyuan_video.transformer.denoiser import HunyuanVideoDenoiser
from longtake.pipelines.prompt_tokens import PromptTokens
from longtake.pipelines.runtime.stepper import SchedulerStepper, Stepper
from longtake.pipelines.spec import ModelSpec

if TYPE_CHECKING:
    from longtake.pipelines.models.hunyuan_video.conditioner.text import TextEncoders


class HunyuanVideo(VideoPipeline):
    """HunyuanVideo text to video. Only rank 0 loads the text encoders."""

    codec: HunyuanVideoCodec
    denoiser: HunyuanVideoDenoiser
    _text: TextEncoders

    def __init__(
        self,
        checkpoint: Checkpoint,
        spec: ModelSpec,
        codec: HunyuanVideoCodec,
        world: World,
        plan: LoadPlan,
        on_component: Callable[[str], None],
    ) -> None:
        """Load the transformer and the text encoders. Collective: all ranks call it.

        Args:
            checkpoint: The model's files.
            spec: The model's specification.
            codec: The loaded autoencoder.
            world: The ranks.
            plan: Dtype and place of each component, and the attention kernel.
            on_component: Called with the name of each component before it is loaded.

        Raises:
            ModelError: A component cannot be loaded, or its weights belong to another model.
        """
        self.spec, self.codec, self._device = spec, codec, world.device
        self._scheduler_config = checkpoint.config("scheduler", "scheduler_config.json")
        on_component("transformer")
        self.denoiser = _load_denoiser(checkpoint, world, plan)
        if world.rank == 0:
            on_component("text encoders")
            self._text = self._load_text(checkpoint, world.device, plan.text_encoders)

    @staticmethod
    def _load_text(
        checkpoint: Checkpoint, device: torch.device, plan: ComponentPlan
    ) -> TextEncoders:
        # Imported on rank 0 only: transformers' models are slow to import.
        from longtake.pipelines.models.hunyuan_video.conditioner.text import TextEncoders

        return TextEncoders(checkpoint, device, plan)

    def encode(self, request: ResolvedRequest, pictures: Mapping[str, Pixels]) -> list[Streams]:
        """Encode each prompt to ``text`` and ``pooled``."""
        template = TextToVideoOptions.of(request).prompt_template
        return [
            self._text.encode(prompt, template, request.max_sequence_length)
            for prompt in self.spec.prompts(request)
        ]

    def prompt_tokens(self, request: ResolvedRequest, *, negative: bool = False) -> PromptTokens:
        """Count LLaMA's tokens. CLIP's limit of 77 does not count: its pooled vector carries no
        detail of the prompt."""
        return self._text.prompt_tokens(
            self.spec.prompts(request)[int(negative)],
            TextToVideoOptions.of(request).prompt_template,
            request.max_sequence_length,
        )

    def stepper(self, request: ResolvedRequest) -> Stepper:
        """Return the model's scheduler with the request's shift and noise levels."""
        scheduler = FlowMatchEulerDiscreteScheduler.from_config(
            self._scheduler_config, shift=request.flow_shift
        )
        sigmas = request.sigmas or np.linspace(1.0, 0.0, request.num_inference_steps + 1)[:-1]
        scheduler.set_timesteps(sigmas=list(sigmas), device=self._device)
        return SchedulerStepper(scheduler)


def _load_denoiser(checkpoint: Checkpoint, world: World, plan: LoadPlan) -> HunyuanVideoDenoiser:
    config = checkpoint.config("transformer")
    transformer = build_module(HunyuanVideoTransformer3DModel, config, "transformer")
    denoiser = HunyuanVideoDenoiser(transformer, plan.kernel)
    weights = Weights(checkpoint.source("transformer"))
    load_transformer(denoiser, transformer, weights, world, plan.transformer)
    denoiser.chunk_feed_forwards()
    return denoiser
