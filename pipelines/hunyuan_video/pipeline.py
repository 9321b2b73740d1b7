"""HunyuanVideo loaded on one rank."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKLHunyuanVideo,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoTransformer3DModel,
)

from longtake.configs.request import ResolvedRequest
from longtake.errors import ModelError, one_line
from longtake.parallel import World
from longtake.pipelines.base import LatentGrid, Stepper, Streams, VideoPipeline
from longtake.pipelines.checkpoint import Checkpoint
from longtake.pipelines.hunyuan_video.denoiser import HunyuanVideoDenoiser
from longtake.pipelines.hunyuan_video.text import TextEncoders
from longtake.pipelines.weights import load_weights, split_weights


class HunyuanVideo(VideoPipeline):
    """HunyuanVideo, text to video. The text encoders and the decoder are on rank 0 alone."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        world: World,
        *,
        dtype: torch.dtype,
        vae_dtype: torch.dtype,
        kernel: str,
        shard_weights: bool,
        on_component: Callable[[str], None],
    ) -> None:
        """Load the model, on all ranks together.

        Args:
            on_component: called with the name of each component before it is loaded.

        Raises:
            ModelError: a component cannot be loaded, or its weights are another model's.
        """
        self._device = world.device
        self._scheduler_config = checkpoint.config("scheduler", "scheduler_config.json")
        on_component("transformer")
        transformer = _build(
            HunyuanVideoTransformer3DModel, checkpoint.config("transformer"), "transformer"
        )
        self._config = transformer.config
        self.denoiser = HunyuanVideoDenoiser(transformer, kernel)
        if shard_weights:
            split_weights(self.denoiser, self.denoiser.blocks, world)
        load_weights(transformer, checkpoint.weights("transformer"), world, dtype)
        self._vae_config = checkpoint.config("vae")
        if world.rank != 0:
            return
        on_component("vae")
        self._vae = _build(AutoencoderKLHunyuanVideo, self._vae_config, "vae")
        load_weights(self._vae, checkpoint.weights("vae"), World(world.device), vae_dtype)
        on_component("text encoders")
        self._text = TextEncoders(checkpoint, world.device, dtype)

    def grid(self, request: ResolvedRequest) -> LatentGrid:
        """The latents of a request."""
        spatial = self._vae_config.get("spatial_compression_ratio", 8)
        temporal = self._vae_config.get("temporal_compression_ratio", 4)
        config = self._config
        return LatentGrid(
            (
                request.num_videos,
                config.in_channels,
                (request.num_frames - 1) // temporal + 1,
                request.height // spatial,
                request.width // spatial,
            ),
            (config.patch_size_t, config.patch_size, config.patch_size),
        )

    def encode(self, prompt: str, request: ResolvedRequest) -> Streams:
        """``text`` and ``pooled`` of a prompt."""
        return self._text.encode(prompt, request.prompt_template, request.max_sequence_length)

    def stepper(self, request: ResolvedRequest) -> Stepper:
        """The model's scheduler with the request's shift and noise levels."""
        scheduler = FlowMatchEulerDiscreteScheduler.from_config(
            self._scheduler_config, shift=request.flow_shift
        )
        sigmas = request.sigmas or np.linspace(1.0, 0.0, request.num_inference_steps + 1)[:-1]
        scheduler.set_timesteps(sigmas=list(sigmas), device=self._device)
        return Stepper(scheduler)

    def decode(self, latents: torch.Tensor, request: ResolvedRequest) -> torch.Tensor:
        """One video's frames, by diffusers' own decoder."""
        self._vae.use_tiling = request.vae_tiling
        scaled = latents[None].to(self._vae.dtype) / self._vae.config.scaling_factor
        pixels: torch.Tensor = self._vae.decode(scaled, return_dict=False)[0][0]
        return (pixels / 2 + 0.5).clamp(0, 1).permute(1, 2, 3, 0).float().cpu()


def _build(model: Any, config: dict[str, Any], component: str) -> Any:
    """A module of diffusers with no weights yet."""
    try:
        with torch.device("meta"):
            return model.from_config(config).eval().requires_grad_(False)
    except Exception as error:  # whatever a wrong value in a configuration leads to
        raise ModelError(
            f"{component}/config.json describes no {model.__name__}: {one_line(error)}"
        ) from error
