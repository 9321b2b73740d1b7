"""The contract of a model family (denoiser, stepper, pipeline), and the denoising loop.

Legend: B videos, C channels, F H W latent frames, height and width, s this rank's tokens, P values
in one token (C x patch).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from longtake.configs.request import ResolvedDecode, ResolvedRequest
from longtake.errors import EngineError
from longtake.parallel import ParallelDims, World
from longtake.parallel.exchange import start_send_recv
from longtake.parallel.mesh import CFG_AXIS, axis_degree, axis_rank
from longtake.pipelines.codec.picture import Pixels
from longtake.pipelines.codec.tiles import TileCoder
from longtake.pipelines.prompt_tokens import PromptTokens
from longtake.pipelines.spec import LatentGrid, ModelSpec

Streams = Mapping[str, torch.Tensor]
"""Conditioning of one guidance branch, by name: text, pooled text, image tokens."""


class Stepper:
    """Steps a diffusers scheduler over the tokens of one video, in float32.

    A flow-matching step is elementwise, so it works on a rank's shard as on the whole sequence. The
    scheduler's state is sharded like the tokens.

    Args:
        scheduler: A diffusers scheduler with its timesteps set, not shared with other videos.
    """

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler
        scheduler.set_begin_index(0)

    @property
    def timesteps(self) -> torch.Tensor:
        """The timestep of each step, float32."""
        timesteps: torch.Tensor = self._scheduler.timesteps
        return timesteps

    def state(self) -> dict[str, torch.Tensor]:
        """State for :meth:`resume`, excluding the tokens and the number of completed steps."""
        return {"sigmas": self._scheduler.sigmas, "timesteps": self._scheduler.timesteps}

    def resume(self, done: int, state: Mapping[str, torch.Tensor]) -> None:
        """Continue after ``done`` completed steps from a saved :meth:`state`."""
        self._scheduler.sigmas, self._scheduler.timesteps = state["sigmas"], state["timesteps"]
        self._scheduler.set_begin_index(done)

    def step(
        self, velocity: torch.Tensor, timestep: torch.Tensor, tokens: torch.Tensor
    ) -> torch.Tensor:
        """Advance the tokens by one step.

        Args:
            velocity: ``[B, s, P]``, any dtype.
            timestep: The next element of :attr:`timesteps`.
            tokens: ``[B, s, P]``, float32.
        """
        stepped: torch.Tensor = self._scheduler.step(
            velocity.float(), timestep, tokens, return_dict=False
        )[0]
        return stepped


BranchT = TypeVar("BranchT")

NO_PICTURES: Mapping[str, Pixels] = {}


class Denoiser(nn.Module, ABC, Generic[BranchT]):
    """A diffusion transformer over sharded tokens.

    It is an ``nn.Module`` that wraps a library's transformer with its own ``forward``, because
    weight sharding attaches to modules.
    """

    @property
    @abstractmethod
    def blocks(self) -> Sequence[nn.Module]:
        """The transformer's blocks, in execution order.

        The first arguments of each block are the segments of this rank's tokens, ``[B, n, D]``
        each, which concatenate to ``[video tokens ; other tokens]``. A block returns the segments
        in the same order.
        """

    @abstractmethod
    def prepare_branch(
        self,
        streams: Streams,
        grid: LatentGrid,
        dims: ParallelDims,
        mesh: DeviceMesh | None,
        request: ResolvedRequest,
        image: torch.Tensor | None = None,
    ) -> BranchT:
        """Prepare the step-independent inputs of one guidance branch; called once per video.

        Args:
            streams: Conditioning of the branch.
            grid: Latent grid of the request.
            dims: Parallel degrees.
            mesh: Device mesh; None on one rank.
            request: The request.
            image: Latents of the first-frame picture, ``[1, C, 1, H, W]``, float32; None for a
                text-to-video model.
        """

    @abstractmethod
    def forward(
        self, tokens: torch.Tensor, timestep: torch.Tensor, branch: BranchT
    ) -> torch.Tensor:
        """Predict the velocity of this rank's tokens.

        Args:
            tokens: ``[B, s, P]``, float32.
            timestep: Scalar tensor, float32.
            branch: Result of :meth:`prepare_branch`.

        Returns:
            ``[B, s, P]``, in the dtype of the weights; 0 for tokens that must not change.
        """


@dataclass(frozen=True)
class Guidance:
    """Embedded guidance (one branch), or true CFG (two branches).

    With true CFG the negative branch runs after the positive one or, where the mesh has ``cfg``
    degree 2, concurrently on other ranks.

    Attributes:
        branches: Results of :meth:`Denoiser.prepare_branch`: the positive branch and, with true
            CFG, the negative one.
        scale: Scale of true CFG; not used with one branch.
        mesh: Device mesh; None on one rank.
    """

    branches: Sequence[Any]
    scale: float
    mesh: DeviceMesh | None

    def velocity(
        self, denoiser: nn.Module, tokens: torch.Tensor, timestep: torch.Tensor
    ) -> torch.Tensor:
        """The guided velocity of this rank's tokens, ``[B, s, P]``."""
        if len(self.branches) == 1:
            velocity: torch.Tensor = denoiser(tokens, timestep, self.branches[0])
            return velocity
        if self.mesh is None or axis_degree(self.mesh, CFG_AXIS) == 1:
            positive, negative = (denoiser(tokens, timestep, each) for each in self.branches)
        else:
            own = axis_rank(self.mesh, CFG_AXIS)
            computed = denoiser(tokens, timestep, self.branches[own]).contiguous()
            received = torch.empty_like(computed)
            start_send_recv(
                [(computed, 1 - own)], [(received, 1 - own)], self.mesh.get_group(CFG_AXIS)
            )()
            positive, negative = (computed, received) if own == 0 else (received, computed)
        positive, negative = positive.float(), negative.float()
        guided: torch.Tensor = negative + self.scale * (positive - negative)
        return guided


def denoise(
    denoiser: nn.Module,
    tokens: torch.Tensor,
    guidance: Guidance,
    stepper: Stepper,
    after_step: Callable[[int, torch.Tensor], None],
    steps_done: int = 0,
) -> torch.Tensor:
    """The denoising loop over this rank's tokens. Nothing is gathered between steps.

    Args:
        denoiser: The transformer.
        tokens: Noise or, if ``steps_done`` > 0, the tokens after that step: ``[B, s, P]``, float32.
        guidance: Computes the velocity of a step.
        stepper: The scheduler, at step ``steps_done``.
        after_step: Called with the number of completed steps and the tokens. If it raises, it must
            raise on all ranks.
        steps_done: Number of steps to skip.

    Returns:
        ``[B, s, P]``, float32.
    """
    for done, timestep in enumerate(stepper.timesteps[steps_done:], start=steps_done + 1):
        velocity = guidance.velocity(denoiser, tokens, timestep)
        tokens = stepper.step(velocity, timestep, tokens)
        after_step(done, tokens)
    return tokens


@dataclass(frozen=True)
class LoadOptions:
    """How a model is loaded; the same on all ranks.

    Attributes:
        dtype: Dtype of the transformer and the text encoders.
        vae_dtype: Dtype of the autoencoder; None is ``dtype``.
        kernel: Name of the local attention kernel.
        shard_weights: Whether to shard the transformer's weights over all ranks.
        autoencoder_only: Whether to load the autoencoder only, which suffices for decoding.
    """

    dtype: torch.dtype
    vae_dtype: torch.dtype | None = None
    kernel: str = "auto"
    shard_weights: bool = False
    autoencoder_only: bool = False

    @property
    def autoencoder_dtype(self) -> torch.dtype:
        """The dtype of the autoencoder."""
        return self.vae_dtype or self.dtype


class VideoPipeline(ABC):
    """A loaded model on one rank; see :func:`longtake.pipelines.runtime.rendering.render_latents`.

    A pipeline loaded with the autoencoder only supports decoding only.

    Attributes:
        spec: Sizes, defaults and costs of the model.
        denoiser: The transformer, whole or sharded, on every rank.
    """

    spec: ModelSpec
    denoiser: Denoiser[Any]

    @abstractmethod
    def encode(
        self,
        request: ResolvedRequest,
        pictures: Mapping[str, Pixels] = NO_PICTURES,
        *,
        negative: bool = False,
    ) -> Streams:
        """Encode a request's prompt. Called on rank 0 only, which holds the text encoders.

        Args:
            request: The request.
            pictures: The request's pictures by field, ``[H, W, 3]`` each.
            negative: Whether to encode the negative prompt.

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

    def guidance_scale(self, request: ResolvedRequest) -> float:
        """The scale of classifier-free guidance."""
        return request.guidance_scale

    def truncated_prompts(self, request: ResolvedRequest) -> dict[str, PromptTokens]:
        """Token counts of the truncated prompts, by request field. Called on rank 0 only."""
        names = ["prompt", *(["negative_prompt"] if self.spec.num_passes(request) > 1 else [])]
        counts = {
            name: self.prompt_tokens(request, negative=name == "negative_prompt") for name in names
        }
        return {name: count for name, count in counts.items() if count.used < count.total}

    def initial_latents(
        self, grid: LatentGrid, request: ResolvedRequest, image: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Initial latents, ``[B, C, F, H, W]``, float32: noise unless overridden.

        Args:
            grid: Latent grid of the request.
            request: The request.
            image: Result of :meth:`ImageToVideoPipeline.encode_image`; None for a text-to-video
                model.
        """
        return grid.noise(request.seed)

    @abstractmethod
    def stepper(self, request: ResolvedRequest) -> Stepper:
        """A new stepper for one video."""

    @abstractmethod
    def decoder(self, request: ResolvedDecode) -> TileCoder:
        """Tile coder from latents to pixels in [-1, 1], with the tiling of a request."""

    @contextmanager
    def denoiser_on_host(self) -> Iterator[None]:
        """Offload the denoiser to host memory inside the context, to free GPU memory for decoding.

        No-op if the denoiser is not loaded, not on a GPU, or sharded over ranks.
        """
        denoiser: nn.Module = getattr(self, "denoiser", nn.Module())
        weights = list(denoiser.parameters())
        if not weights or not weights[0].is_cuda or isinstance(weights[0], DTensor):
            yield
            return
        device = weights[0].device
        denoiser.to("cpu")
        torch.cuda.empty_cache()
        try:
            yield
        finally:
            denoiser.to(device)

    @abstractmethod
    def encoder(self, request: ResolvedDecode) -> TileCoder:
        """Tile coder from pixels in [-1, 1] to latent moments, with the same tiling."""


class ImageToVideoPipeline(VideoPipeline):
    """A pipeline whose videos start from a picture."""

    @abstractmethod
    def encode_image(
        self, pixels: torch.Tensor, request: ResolvedRequest, world: World
    ) -> torch.Tensor:
        """Encode a picture to latents. Collective: all ranks call it.

        Args:
            pixels: ``[1, 3, 1, H, W]`` in [-1, 1], identical on all ranks.
            request: The request.
            world: The ranks.

        Returns:
            ``[1, C, 1, H, W]``, float32, with the scale of denoised latents, on every rank.
        """


def check_latents(latents: torch.Tensor) -> torch.Tensor:
    """Raise if denoised latents are infinite or NaN, which would decode to black frames."""
    return _finite(
        latents,
        "the latents are not finite after denoising: the weights do not fit the architecture, or "
        "float16 overflowed; try dtype bfloat16 or float32",
    )


def check_image(image: torch.Tensor) -> torch.Tensor:
    """Raise if the encoded picture is infinite or NaN, before denoising."""
    return _finite(image, f"the picture's latents are not finite: {_VAE_CAUSES}")


def check_frames(values: torch.Tensor) -> torch.Tensor:
    """Raise if decoded frames are infinite or NaN, before they are clamped to [0, 1]."""
    return _finite(values, f"the decoded frames are not finite: {_VAE_CAUSES}")


_VAE_CAUSES = "the VAE's weights are damaged, or float16 overflowed; try vae_dtype float32"


def _finite(values: torch.Tensor, message: str) -> torch.Tensor:
    if not bool(torch.isfinite(values).all()):
        raise EngineError(message)
    return values
