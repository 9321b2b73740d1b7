"""The contract of a model family: its pipeline, denoiser and codec.

Legend: B videos, C channels, F H W latent frames, height and width, s this rank's tokens, P values
in one token (C x patch).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from longtake.configs.request import ResolvedDecode, ResolvedRequest
from longtake.parallel import World
from longtake.pipelines.codec.picture import Pixels
from longtake.pipelines.codec.resting_weights import RestingWeights
from longtake.pipelines.codec.tiles import TileCoder
from longtake.pipelines.layout import VideoLayout
from longtake.pipelines.prompt_tokens import PromptTokens
from longtake.pipelines.runtime.block_runner import BlockRunner
from longtake.pipelines.runtime.guidance import Guidance, classifier_free
from longtake.pipelines.runtime.stepper import Step, Stepper
from longtake.pipelines.spec import LatentGrid, ModelSpec
from longtake.pipelines.streaming.streamer import takes_memory

if TYPE_CHECKING:
    from longtake.pipelines.lora.fused import FusedTransformer

Streams = Mapping[str, torch.Tensor]
"""Conditioning by name, such as the text of one pass, or the latents of pictures."""

PassT = TypeVar("PassT")


class Denoiser(nn.Module, ABC, Generic[PassT]):
    """A diffusion transformer over sharded tokens.

    It is an ``nn.Module`` that wraps a library's transformer with its own ``forward``, because
    weight sharding attaches to modules.

    Attributes:
        run_blocks: Runs the blocks in :meth:`forward`.
        transformers: The loaded transformers by component, into which LoRAs can be fused.
    """

    def __init__(self) -> None:
        super().__init__()
        self.run_blocks = BlockRunner()
        self.transformers: dict[str, FusedTransformer] = {}

    @property
    @abstractmethod
    def chains(self) -> Sequence[Sequence[nn.Module]]:
        """The blocks of each transformer in execution order; a model of experts has several."""

    def running_module(self, step: Step) -> nn.Module:
        """The module whose weights a step uses; all of them by default."""
        return self

    @abstractmethod
    def prepare(
        self,
        streams: Streams,
        layout: VideoLayout,
        request: ResolvedRequest,
        pictures: Streams,
    ) -> PassT:
        """Prepare the step-independent inputs of one pass; called once per video.

        Args:
            streams: Conditioning of the pass, whole on every rank.
            layout: The video's tokens and their owners.
            request: The request.
            pictures: Result of :meth:`VideoPipeline.encode_pictures`.
        """

    @abstractmethod
    def forward(self, tokens: torch.Tensor, step: Step, inputs: PassT) -> torch.Tensor:
        """Predict the velocity of this rank's tokens.

        Args:
            tokens: ``[B, s, P]``, float32.
            step: The step.
            inputs: Result of :meth:`prepare`.

        Returns:
            ``[B, s, P]``, in the dtype of the weights; 0 for tokens that must not change.
        """


class VideoCodec(ABC):
    """A loaded autoencoder on one rank. Its coders run within :meth:`at_work`."""

    _resting: RestingWeights | None = None

    @property
    def modules(self) -> Sequence[nn.Module]:
        """Modules whose weights may rest in host memory; without any, they stay on the device."""
        return ()

    @abstractmethod
    def decoder(self, request: ResolvedDecode) -> TileCoder:
        """Tile coder from latents to pixels in [-1, 1], with the tiling of a request."""

    def rest_on_host(self) -> None:
        """Keep the weights in host memory from now on, except within :meth:`at_work`."""
        self._resting = RestingWeights(self.modules)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Have the weights on the device within the context."""
        with nullcontext() if self._resting is None else self._resting.on_device():
            yield


class VideoPipeline(ABC):
    """A loaded model on one rank; see :func:`longtake.pipelines.runtime.rendering.render_latents`.

    Attributes:
        spec: Sizes, defaults and costs of the model.
        codec: The autoencoder.
        denoiser: The transformer, whole or sharded, on every rank.
    """

    spec: ModelSpec
    codec: VideoCodec
    denoiser: Denoiser[Any]

    @abstractmethod
    def encode(self, request: ResolvedRequest, pictures: Mapping[str, Pixels]) -> list[Streams]:
        """Encode the conditioning of each pass. Called on rank 0 only, which has the encoders.

        Args:
            request: The request.
            pictures: Pictures, ``[H, W, 3]`` of any size, by request field.

        Returns:
            One for each pass: that of the prompt and, with classifier-free guidance, that of the
            negative prompt.

        Raises:
            RequestError: No prompt tokens remain after encoding.
        """

    @abstractmethod
    def prompt_tokens(self, request: ResolvedRequest, *, negative: bool = False) -> PromptTokens:
        """Number of prompt tokens, in total and used by :meth:`encode`. Called on rank 0 only.

        Args:
            request: The request.
            negative: Whether to count the negative prompt.
        """

    def truncated_prompts(self, request: ResolvedRequest) -> dict[str, PromptTokens]:
        """Token counts of the truncated prompts, by request field. Called on rank 0 only."""
        guided = self.spec.num_passes(request) > 1
        counts = {
            name: self.prompt_tokens(request, negative=name == "negative_prompt")
            for name in (["prompt", "negative_prompt"] if guided else ["prompt"])
        }
        return {name: count for name, count in counts.items() if count.used < count.total}

    def encode_pictures(self, videos: Streams, request: ResolvedRequest, world: World) -> Streams:
        """Encode pictures to latents. Collective: all ranks call it.

        Args:
            videos: Pictures as videos of one frame, ``[1, 3, 1, height, width]`` in [-1, 1], by
                request field; identical on all ranks.
            request: The request.
            world: The ranks.

        Returns:
            Latents by name, of any number of channels and frames, float32, on every rank's device.
        """
        return {}

    def initial_latents(
        self, grid: LatentGrid, request: ResolvedRequest, pictures: Streams
    ) -> torch.Tensor:
        """Initial latents, ``[B, C, F, H, W]``, float32: noise unless overridden.

        Args:
            grid: Latent grid of the request.
            request: The request.
            pictures: Result of :meth:`encode_pictures`.
        """
        return grid.noise(request.seed)

    def guidance(self, passes: Sequence[Any], request: ResolvedRequest) -> Guidance:
        """How the velocities of the passes combine: classifier-free guidance unless overridden.

        Args:
            passes: Results of :meth:`Denoiser.prepare`, one for each result of :meth:`encode`.
            request: The request.
        """
        if len(passes) == 1:
            return Guidance(passes)
        scale = self.spec.cfg_scale(request)
        return Guidance(passes, classifier_free(lambda step: scale))

    @abstractmethod
    def stepper(self, request: ResolvedRequest) -> Stepper:
        """A new stepper for one video."""

    def finish_latents(self, latents: torch.Tensor, pictures: Streams) -> torch.Tensor:
        """The latents to decode, from those after the last step; the same unless overridden.

        Args:
            latents: ``[B, C, F, H, W]``, float32.
            pictures: Result of :meth:`encode_pictures`.
        """
        return latents

    @contextmanager
    def denoiser_on_host(self) -> Iterator[None]:
        """Offload the denoiser to host memory inside the context, to free GPU memory for decoding.

        Weights that rest elsewhere already stay there. No-op if the denoiser is not on a GPU, or
        sharded over ranks.
        """
        weights = [*self.denoiser.parameters(), *self.denoiser.buffers()]
        moved = [each for each in weights if each.is_cuda and takes_memory(each)]
        if not moved or any(isinstance(each, DTensor) for each in moved):
            yield
            return
        device = moved[0].device
        for each in moved:
            each.data = each.data.cpu()
        torch.cuda.empty_cache()
        try:
            yield
        finally:
            for each in moved:
                each.data = each.data.to(device)
