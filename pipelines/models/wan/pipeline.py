"""Wan 2.1 and 2.2, loaded on one rank."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from longtake.configs.request import ResolvedRequest
from longtake.parallel import World
from longtake.pipelines.codec.picture import Pixels
from longtake.pipelines.family import Streams, VideoPipeline
from longtake.pipelines.loading.checkpoint import Checkpoint
from longtake.pipelines.loading.plan import LoadPlan
from longtake.pipelines.models.wan.codec.codec import WanCodec
from longtake.pipelines.models.wan.options import WanExpertsOptions
from longtake.pipelines.models.wan.samplers import new_stepper
from longtake.pipelines.models.wan.spec import WanSpec
from longtake.pipelines.models.wan.transformer.denoiser import WanDenoiser, is_high_noise
from longtake.pipelines.models.wan.transformer.loading import load_denoiser
from longtake.pipelines.prompt_tokens import PromptTokens
from longtake.pipelines.runtime.guidance import Guidance, classifier_free
from longtake.pipelines.runtime.stepper import Step, Stepper

if TYPE_CHECKING:
    from longtake.pipelines.models.wan.conditioner.conditioner import WanConditioner


class WanVideo(VideoPipeline):
    """Any of the Wan models. Only rank 0 loads the encoders of text and pictures."""

    spec: WanSpec
    codec: WanCodec
    denoiser: WanDenoiser
    _conditioner: WanConditioner

    def __init__(
        self,
        checkpoint: Checkpoint,
        spec: WanSpec,
        codec: WanCodec,
        world: World,
        plan: LoadPlan,
        on_component: Callable[[str], None],
    ) -> None:
        """Load the transformers and the encoders. Collective: all ranks call it.

        Args:
            checkpoint: The model's files.
            spec: The model's specification.
            codec: The loaded autoencoder.
            world: The ranks.
            plan: Dtypes and places of the components, and the attention kernel.
            on_component: Called with the name of each component before it is loaded.

        Raises:
            ModelError: A component cannot be loaded, or its weights belong to another model.
        """
        self.spec, self.codec, self._device = spec, codec, world.device
        self.denoiser = load_denoiser(checkpoint, spec, world, plan, on_component)
        if world.rank == 0:
            on_component("text encoders")
            self._conditioner = _load_conditioner(checkpoint, spec, world.device, plan)

    def encode(self, request: ResolvedRequest, pictures: Mapping[str, Pixels]) -> list[Streams]:
        """Encode each prompt to ``text``; for a model with image keys, the pictures to ``image``,
        the same for both passes."""
        given = [pictures[name] for name in self.spec.pictures if name in pictures]
        image = self._conditioner.encode_images(given) if self.spec.has_image_keys else {}
        length = request.max_sequence_length
        return [
            {**self._conditioner.encode(prompt, length), **image}
            for prompt in self.spec.prompts(request)
        ]

    def prompt_tokens(self, request: ResolvedRequest, *, negative: bool = False) -> PromptTokens:
        """Count UMT5's tokens."""
        prompt = self.spec.prompts(request)[int(negative)]
        return self._conditioner.prompt_tokens(prompt, request.max_sequence_length)

    def encode_pictures(self, videos: Streams, request: ResolvedRequest, world: World) -> Streams:
        """Return ``first_frame`` for a model with a timestep per token, else ``condition``; see
        :meth:`WanDenoiser.prepare`."""
        if self.spec.expand_timesteps:
            return {"first_frame": self.codec.encode_first_frame(videos, request, world)}
        return {"condition": self.codec.encode_condition(videos, request, world)}

    def guidance(self, passes: Sequence[Any], request: ResolvedRequest) -> Guidance:
        """Classifier-free guidance with the scale of the running expert, unless it is off."""
        if len(passes) == 1:
            return Guidance(passes)
        high = request.guidance_scale
        given = WanExpertsOptions.of(request).guidance_scale_2
        low = high if given is None else given

        def scale_of(step: Step) -> float:
            return high if is_high_noise(step, self.spec.boundary) else low

        return Guidance(passes, classifier_free(scale_of))

    def stepper(self, request: ResolvedRequest) -> Stepper:
        """Return the requested sampler with the request's shift and noise levels."""
        return new_stepper(self.spec.scheduler, request, self._device)

    def finish_latents(self, latents: torch.Tensor, pictures: Streams) -> torch.Tensor:
        """Put the picture back as the first frame of a model with a timestep per token."""
        if "first_frame" in pictures:
            latents[:, :, :1] = pictures["first_frame"]
        return latents


def _load_conditioner(
    checkpoint: Checkpoint, spec: WanSpec, device: torch.device, plan: LoadPlan
) -> WanConditioner:
    # Imported on rank 0 only: transformers' models are slow to import.
    from longtake.pipelines.models.wan.conditioner.conditioner import WanConditioner

    return WanConditioner(checkpoint, device, plan.text_encoders, image_keys=spec.has_image_keys)
