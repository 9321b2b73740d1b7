"""A toy model on one rank. Legend: B videos, s a rank's tokens, P values in one."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from longtake.configs.request import ResolvedDecode, ResolvedRequest
from longtake.parallel import World
from longtake.pipelines.codec.causal_tiling import CausalTileCoder
from longtake.pipelines.codec.picture import Pixels
from longtake.pipelines.counting.skeleton import Skeleton
from longtake.pipelines.family import Streams, VideoCodec, VideoPipeline
from longtake.pipelines.loading.build import load_component
from longtake.pipelines.loading.checkpoint import Checkpoint
from longtake.pipelines.loading.plan import LoadPlan
from longtake.pipelines.prompt_tokens import PromptTokens
from longtake.pipelines.runtime.guidance import Guidance, Sum
from longtake.pipelines.runtime.stepper import Step, Stepper, Tensors
from longtake.pipelines.spec import ModelSpec
from longtake_toy import ToyOptions
from longtake_toy.denoiser import ToyDenoiser
from longtake_toy.spec import SPACE, TIME, ToyConfig


def new_convolution(spec: ModelSpec) -> nn.ConvTranspose3d:
    """The autoencoder, which has no encoder."""
    ratios = spec.autoencoder.ratios
    return nn.ConvTranspose3d(spec.autoencoder.latent_channels, 3, ratios, ratios)


class ToyDecoder(CausalTileCoder):
    """Decodes tiles of latents by one convolution."""

    channels = 3

    def __init__(self, convolution: nn.ConvTranspose3d, request: ResolvedDecode) -> None:
        super().__init__(request, TIME, SPACE, decodes=True)
        self._convolution, self.dtype = convolution, convolution.weight.dtype

    def run(self, tiles: torch.Tensor) -> torch.Tensor:
        """Decode ``[b, C, f, h, w]``; the first latent frame is one frame."""
        return torch.tanh(self._convolution(tiles.to(self.dtype)))[:, :, 1:]


class ToyCodec(VideoCodec):
    """The loaded autoencoder."""

    def __init__(
        self, checkpoint: Checkpoint, spec: ModelSpec, world: World, plan: LoadPlan
    ) -> None:
        build = partial(new_convolution, spec)
        self._convolution = load_component(build, checkpoint, "vae", world, plan.autoencoder)

    def decoder(self, request: ResolvedDecode) -> ToyDecoder:
        return ToyDecoder(self._convolution, request)


class AdamsBashforth(Stepper):
    """A two-step sampler: it corrects each velocity by the change since the one before."""

    num_token_states = 1

    def __init__(self, sigmas: Sequence[float], device: torch.device) -> None:
        self._sigmas, self._last = [*sigmas, 0.0], dict[str, torch.Tensor]()
        self.timesteps = 1000 * torch.tensor(sigmas, device=device)

    def token_state(self) -> dict[str, torch.Tensor]:
        return self._last

    def resume(self, done: int, state: Tensors, token_state: Tensors) -> None:
        self._last = dict(token_state)

    def step(self, velocity: torch.Tensor, step: Step, tokens: torch.Tensor) -> torch.Tensor:
        earlier, now, later = (self._sigmas[step.index + at] for at in (-1, 0, 1))
        slope = velocity.float()
        change = slope - self._last.get("velocity", slope)
        self._last = {"velocity": slope}
        return tokens + (later - now) * (slope + change * (later - now) / (now - earlier) / 2)


class ToyPipeline(VideoPipeline):
    """A loaded model."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        spec: ModelSpec,
        codec: VideoCodec,
        world: World,
        plan: LoadPlan,
        on_component: Callable[[str], None],
    ) -> None:
        self.spec, self.codec, self._device = spec, codec, world.device
        on_component("transformer")
        build = partial(ToyDenoiser, checkpoint.parse_config(ToyConfig, "transformer"), plan.kernel)
        self.denoiser = load_component(build, checkpoint, "transformer", world, plan.transformer)
        if world.rank == 0:
            table = checkpoint.source("text_encoder").read("bytes")
            self._bytes = table.to(world.device, plan.text_encoders.dtype)

    def encode(self, request: ResolvedRequest, pictures: Mapping[str, Pixels]) -> list[Streams]:
        """Encode each prompt to ``text``: the embeddings of its bytes."""
        prompts = (each.encode() or b" " for each in self.spec.prompts(request))
        texts = [list(prompt[: request.max_sequence_length]) for prompt in prompts]
        return [{"text": self._bytes[text][None]} for text in texts]

    def prompt_tokens(self, request: ResolvedRequest, *, negative: bool = False) -> PromptTokens:
        total = len(self.spec.prompts(request)[int(negative)].encode())
        return PromptTokens(min(total, request.max_sequence_length), total)

    def guidance(self, passes: Sequence[Any], request: ResolvedRequest) -> Guidance:
        """Classifier-free guidance, rescaled towards the contrast of the prompt's own pass."""
        guided = super().guidance(passes, request)
        share = ToyOptions.of(request).guidance_rescale or 0.0

        def combine(velocities: Sequence[torch.Tensor], step: Step, total: Sum) -> torch.Tensor:
            velocity = guided.combine(velocities, step, total)
            ratio = deviation(velocities[0], total) / deviation(velocity, total)
            return velocity * (1 + share * (ratio - 1))

        return Guidance(passes, combine)

    def stepper(self, request: ResolvedRequest) -> Stepper:
        """A new sampler with the requested noise levels and shift."""
        count, shift = request.num_inference_steps, request.flow_shift
        sigmas = request.sigmas or [1 - step / count for step in range(count)]
        return AdamsBashforth([shift * s / (1 + (shift - 1) * s) for s in sigmas], self._device)


def deviation(values: torch.Tensor, total: Sum) -> torch.Tensor:
    """Standard deviation of ``[B, s, P]`` over the tokens of all ranks, ``[B, 1, 1]``."""
    powers = torch.stack([values.float() ** power for power in range(3)])
    count, first, second = total(powers.sum((2, 3), keepdim=True))
    return torch.sqrt(second / count - (first / count) ** 2)


def skeleton(checkpoint: Checkpoint, spec: ModelSpec) -> Skeleton:
    """The model without weights, on which its costs are counted."""
    config = checkpoint.parse_config(ToyConfig, "transformer")
    with torch.device("meta"):
        denoiser, convolution = ToyDenoiser(config), new_convolution(spec)
    return Skeleton(
        denoiser=denoiser,
        streams=lambda count: {"text": torch.empty(1, count, config.text_size)},
        autoencoder=convolution,
        decoder=lambda request: ToyDecoder(convolution, request),
    )
