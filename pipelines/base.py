"""What every model shares: the schedule, the denoiser, the denoising loop, the pipeline.

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
from longtake.pipelines.picture import Pixels
from longtake.pipelines.prompt_tokens import PromptTokens
from longtake.pipelines.spec import LatentGrid, ModelSpec
from longtake.pipelines.tiles import TileCoder

Streams = Mapping[str, torch.Tensor]
"""What one branch of guidance is conditioned on, by name: text, pooled text, an image's tokens."""


class Stepper:
    """A scheduler of diffusers, and its steps over one video's tokens.

    Works on split tokens as on whole ones, since a flow-matching step looks at one value at a time;
    what it remembers is split like the tokens. All in float32.

    Args:
        scheduler: of this video alone, with its timesteps set.
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
        """What it needs, beside the tokens and the number of steps done, to go on elsewhere."""
        return {"sigmas": self._scheduler.sigmas, "timesteps": self._scheduler.timesteps}

    def resume(self, done: int, state: Mapping[str, torch.Tensor]) -> None:
        """Go on after so many steps, with what another's :meth:`state` was then."""
        self._scheduler.sigmas, self._scheduler.timesteps = state["sigmas"], state["timesteps"]
        self._scheduler.set_begin_index(done)

    def step(
        self, velocity: torch.Tensor, timestep: torch.Tensor, tokens: torch.Tensor
    ) -> torch.Tensor:
        """The tokens one step on.

        Args:
            velocity: ``[B, s, P]``, any dtype.
            timestep: the next of :attr:`timesteps`.
            tokens: ``[B, s, P]``, float32.
        """
        stepped: torch.Tensor = self._scheduler.step(
            velocity.float(), timestep, tokens, return_dict=False
        )[0]
        return stepped


BranchT = TypeVar("BranchT")


class Denoiser(nn.Module, ABC, Generic[BranchT]):
    """A diffusion transformer over split tokens.

    It is an ``nn.Module`` with a forward of its own around a library's transformer, since that is
    where weight sharding attaches.
    """

    @property
    @abstractmethod
    def blocks(self) -> Sequence[nn.Module]:
        """The transformer's blocks in the order in which they run.

        Each takes the parts of this rank's tokens before anything else, and returns them in the
        same order: ``[B, n, D]`` each, together ``[its video tokens ; its other tokens]``.
        """

    @abstractmethod
    def branch(
        self,
        streams: Streams,
        grid: LatentGrid,
        dims: ParallelDims,
        mesh: DeviceMesh | None,
        request: ResolvedRequest,
        image: torch.Tensor | None = None,
    ) -> BranchT:
        """Prepare, once a video, what one branch of guidance needs at each step.

        Args:
            image: latents of the picture that the videos begin with, ``[1, C, 1, H, W]``, float32;
                None of a text-to-video model.
        """

    @abstractmethod
    def forward(
        self, tokens: torch.Tensor, timestep: torch.Tensor, branch: BranchT
    ) -> torch.Tensor:
        """The velocity of this rank's tokens.

        Args:
            tokens: ``[B, s, P]``, float32.
            timestep: one value, float32.

        Returns:
            ``[B, s, P]``, in the dtype of the weights; 0 for tokens that are to stay as they are.
        """


@dataclass(frozen=True)
class Guidance:
    """Embedded guidance (one branch), or true CFG (two branches).

    With true CFG the negative branch runs after the positive one or, where the mesh has ``cfg``
    degree 2, concurrently on other ranks.

    Attributes:
        branches: Results of :meth:`Denoiser.branch`: the positive one and, with true CFG, the
            negative one.
        scale: Scale of true CFG; not used with one branch.
        mesh: The grid of ranks; None on one rank.
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
        after_step: Called with the number of steps done and the tokens; may raise, on all ranks
            alike.
        steps_done: Number of steps to skip.

    Returns:
        ``[B, s, P]``, float32.
    """
    for done, timestep in enumerate(stepper.timesteps[steps_done:], start=steps_done + 1):
        velocity = guidance.velocity(denoiser, tokens, timestep)
        tokens = stepper.step(velocity, timestep, tokens)
        after_step(done, tokens)
    return tokens


class VideoPipeline(ABC):
    """One loaded model on one rank: what :func:`longtake.pipelines.rendering.render` works with.

    It may hold the autoencoder alone, and then only decodes.

    Attributes:
        spec: The model's arithmetic, such as the latent grid of a request.
        denoiser: The transformer, on every rank.
    """

    spec: ModelSpec
    denoiser: Denoiser[Any]

    @abstractmethod
    def encode(
        self, request: ResolvedRequest, picture: Pixels | None = None, *, negative: bool = False
    ) -> Streams:
        """Encode a request's prompt; on rank 0 alone, which holds the text encoders.

        Args:
            picture: that the videos begin with, ``[H, W, 3]``; of an image-to-video model.
            negative: its negative prompt.

        Raises:
            RequestError: nothing is left of the prompt once it is encoded.
        """

    @abstractmethod
    def prompt_tokens(self, request: ResolvedRequest, *, negative: bool = False) -> PromptTokens:
        """How much of a request's prompt :meth:`encode` uses; on rank 0 alone.

        Args:
            negative: its negative prompt.
        """

    def truncated_prompts(self, request: ResolvedRequest) -> dict[str, PromptTokens]:
        """The prompts of a request, by field, that are longer than what is used of them; on rank 0
        alone."""
        names = ["prompt", *(["negative_prompt"] if request.uses_true_cfg else [])]
        counts = {
            name: self.prompt_tokens(request, negative=name == "negative_prompt") for name in names
        }
        return {name: count for name, count in counts.items() if count.used < count.total}

    def start(
        self, grid: LatentGrid, request: ResolvedRequest, image: torch.Tensor | None = None
    ) -> torch.Tensor:
        """What denoising begins with, ``[B, C, F, H, W]``, float32: noise, but for a picture.

        Args:
            image: from :meth:`ImageToVideoPipeline.encode_image`; None of a text-to-video model.
        """
        return grid.noise(request.seed)

    @abstractmethod
    def stepper(self, request: ResolvedRequest) -> Stepper:
        """A schedule of its own for one video."""

    @abstractmethod
    def decoder(self, request: ResolvedDecode) -> TileCoder:
        """Latents to pixels in [-1, 1], in the tiles of a request."""

    @contextmanager
    def denoiser_on_host(self) -> Iterator[None]:
        """Have the denoiser in the host's memory, not the GPU's, for as long as the enclosed lines
        decode. One that is not loaded, or split over ranks, stays where it is."""
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
        """Pixels in [-1, 1] to the moments of their latents, in the same tiles."""


class ImageToVideoPipeline(VideoPipeline):
    """One whose videos begin with a picture."""

    @abstractmethod
    def encode_image(
        self, pixels: torch.Tensor, request: ResolvedRequest, world: World
    ) -> torch.Tensor:
        """The latents of a picture; called by all ranks together.

        Args:
            pixels: ``[1, 3, 1, H, W]`` in [-1, 1], the same on all ranks.

        Returns:
            ``[1, C, 1, H, W]``, float32, scaled as those that are denoised, on every rank.
        """


def check_latents(latents: torch.Tensor) -> torch.Tensor:
    """Refuse latents that went to infinity or became no number, rather than write black frames."""
    return _finite(
        latents,
        "the latents are not finite after denoising: weights that do not fit the architecture, or "
        "numbers too large for float16; try dtype bfloat16 or float32",
    )


def check_image(image: torch.Tensor) -> torch.Tensor:
    """The same for what the encoder made of a picture, before anything is denoised."""
    return _finite(image, f"the picture's latents are not finite: {_OF_THE_VAE}")


def check_frames(values: torch.Tensor) -> torch.Tensor:
    """The same for what the decoder made of good latents, before it is cut to [0, 1]."""
    return _finite(values, f"the decoded frames are not finite: {_OF_THE_VAE}")


_OF_THE_VAE = "damaged weights of the vae, or numbers too large for float16; try vae_dtype float32"


def _finite(values: torch.Tensor, otherwise: str) -> torch.Tensor:
    if not bool(torch.isfinite(values).all()):
        raise EngineError(otherwise)
    return values
