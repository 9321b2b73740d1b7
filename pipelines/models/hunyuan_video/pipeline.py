"""HunyuanVideo text to video, loaded on one rank."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from diffusers import (
    AutoencoderKLHunyuanVideo,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoTransformer3DModel,
)

from longtake.configs.request import ResolvedDecode, ResolvedRequest
from longtake.parallel import World
from longtake.pipelines.base import NO_PICTURES, LoadOptions, Stepper, Streams, VideoPipeline
from longtake.pipelines.codec.picture import Pixels
from longtake.pipelines.codec.tiles import TileCoder
from longtake.pipelines.loading.build import build_module
from longtake.pipelines.loading.checkpoint import Checkpoint
from longtake.pipelines.loading.weights import load_weights, shard_module
from longtake.pipelines.models.hunyuan_video.codec.autoencoder import (
    HunyuanVideoDecoder,
    HunyuanVideoEncoder,
)
from longtake.pipelines.models.hunyuan_video.options import TextToVideoOptions
from longtake.pipelines.models.hunyuan_video.transformer.denoiser import HunyuanVideoDenoiser
from longtake.pipelines.prompt_tokens import PromptTokens
from longtake.pipelines.spec import ModelSpec

if TYPE_CHECKING:
    from longtake.pipelines.models.hunyuan_video.conditioner.text import TextEncoders


class HunyuanVideo(VideoPipeline):
    """HunyuanVideo text to video. Only rank 0 loads the text encoders."""

    denoiser: HunyuanVideoDenoiser
    _text: TextEncoders

    def __init__(
        self,
        checkpoint: Checkpoint,
        spec: ModelSpec,
        world: World,
        options: LoadOptions,
        on_component: Callable[[str], None],
    ) -> None:
        """Load the model. Collective: all ranks call it.

        Args:
            checkpoint: The model's files.
            spec: The model's specification.
            world: The ranks.
            options: Dtypes, attention kernel, and what to load.
            on_component: Called with the name of each component before it is loaded.

        Raises:
            ModelError: A component cannot be loaded, or its weights belong to another model.
        """
        self.spec = spec
        self._device = world.device
        on_component("vae")
        self._vae = build_module(AutoencoderKLHunyuanVideo, checkpoint.config("vae"), "vae")
        load_weights(self._vae, checkpoint.weights("vae"), world, options.autoencoder_dtype)
        if options.autoencoder_only:
            return
        self._scheduler_config = checkpoint.config("scheduler", "scheduler_config.json")
        on_component("transformer")
        self.denoiser = _load_denoiser(checkpoint, world, options)
        if world.rank == 0:
            on_component("text encoders")
            self._text = self._load_text(checkpoint, world.device, options.dtype)

    @staticmethod
    def _load_text(
        checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype
    ) -> TextEncoders:
        # Imported on rank 0 only: transformers' models are slow to import.
        from longtake.pipelines.models.hunyuan_video.conditioner.text import TextEncoders

        return TextEncoders(checkpoint, device, dtype)

    def encode(
        self,
        request: ResolvedRequest,
        pictures: Mapping[str, Pixels] = NO_PICTURES,
        *,
        negative: bool = False,
    ) -> Streams:
        """Encode a prompt to ``text`` and ``pooled``."""
        template = TextToVideoOptions.of(request).prompt_template
        return self._text.encode(_prompt(request, negative), template, request.max_sequence_length)

    def prompt_tokens(self, request: ResolvedRequest, *, negative: bool = False) -> PromptTokens:
        """Count LLaMA's tokens. CLIP's limit of 77 does not count: its pooled vector carries no
        detail of the prompt."""
        template = TextToVideoOptions.of(request).prompt_template
        return self._text.prompt_tokens(
            _prompt(request, negative), template, request.max_sequence_length
        )

    def guidance_scale(self, request: ResolvedRequest) -> float:
        """The scale of true CFG."""
        return TextToVideoOptions.of(request).true_cfg_scale or 1.0

    def stepper(self, request: ResolvedRequest) -> Stepper:
        """Return the model's scheduler with the request's shift and noise levels."""
        scheduler = FlowMatchEulerDiscreteScheduler.from_config(
            self._scheduler_config, shift=request.flow_shift
        )
        sigmas = request.sigmas or np.linspace(1.0, 0.0, request.num_inference_steps + 1)[:-1]
        scheduler.set_timesteps(sigmas=list(sigmas), device=self._device)
        return Stepper(scheduler)

    def decoder(self, request: ResolvedDecode) -> TileCoder:
        """Return the autoencoder's decoder, tiled as requested."""
        return HunyuanVideoDecoder(self._vae, request)

    def encoder(self, request: ResolvedDecode) -> TileCoder:
        """Return the autoencoder's encoder, tiled as requested."""
        return HunyuanVideoEncoder(self._vae, request)


def _load_denoiser(
    checkpoint: Checkpoint, world: World, options: LoadOptions
) -> HunyuanVideoDenoiser:
    config = checkpoint.config("transformer")
    transformer = build_module(HunyuanVideoTransformer3DModel, config, "transformer")
    denoiser = HunyuanVideoDenoiser(transformer, options.kernel)
    if options.shard_weights:
        shard_module(denoiser, denoiser.blocks, world)
    load_weights(transformer, checkpoint.weights("transformer"), world, options.dtype)
    return denoiser


def _prompt(request: ResolvedRequest, negative: bool) -> str:
    return (request.negative_prompt or "") if negative else request.prompt
