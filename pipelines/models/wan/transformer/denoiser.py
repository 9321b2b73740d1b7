"""Wan's denoiser: one transformer, or two experts that share the steps.

Legend: B videos, C channels, F H W latent frames, height and width, s local video tokens, P values
per token, L text tokens, K image tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from diffusers import WanTransformer3DModel
from torch import nn

from longtake.configs.request import ResolvedRequest
from longtake.pipelines.chunks import TOKENS_PER_CHUNK
from longtake.pipelines.family import Denoiser, Streams
from longtake.pipelines.layout import VideoLayout
from longtake.pipelines.models.wan.spec import EXPERTS
from longtake.pipelines.models.wan.transformer.attention import SelfAttentionContext
from longtake.pipelines.models.wan.transformer.experts import WanExpert, WanPass
from longtake.pipelines.models.wan.transformer.rope import video_rotation
from longtake.pipelines.runtime.stepper import Step
from longtake.pipelines.spec import LatentGrid

HIGH_NOISE, LOW_NOISE = EXPERTS


class WanDenoiser(Denoiser[WanPass]):
    """Runs the transformer of each step on the local tokens.

    Args:
        transformers: Transformers by component, one or both of :data:`HIGH_NOISE` and
            :data:`LOW_NOISE`, of the same sizes. A single one runs all steps.
        boundary: Timestep below which the low-noise expert runs; not used with one transformer.
        kernel: Name of the local attention kernel.
        tokens_per_chunk: Largest number of tokens that what widens them treats at once.

    Attributes:
        experts: The transformers, by component.
    """

    def __init__(
        self,
        transformers: Mapping[str, WanTransformer3DModel],
        boundary: float | None = None,
        kernel: str = "auto",
        tokens_per_chunk: int = TOKENS_PER_CHUNK,
    ) -> None:
        super().__init__()
        self.experts = nn.ModuleDict(
            {name: WanExpert(each, tokens_per_chunk) for name, each in transformers.items()}
        )
        self._boundary = boundary
        self._kernel = kernel
        config = next(iter(transformers.values())).config
        self._head_size: int = config.attention_head_dim

    @property
    def chains(self) -> Sequence[Sequence[nn.Module]]:
        """The blocks of each expert, in execution order."""
        return [self.expert(name).blocks for name in self.experts]

    def chunk_feed_forwards(self) -> None:
        """Run the feed-forwards of all experts over chunks of tokens, once they are loaded."""
        for name in self.experts:
            self.expert(name).chunk_feed_forwards()

    def running_module(self, step: Step) -> WanExpert:
        """The expert that a step runs."""
        name = HIGH_NOISE if is_high_noise(step, self._boundary) else LOW_NOISE
        return self._any_expert if len(self.experts) == 1 else self.expert(name)

    def prepare(
        self,
        streams: Streams,
        layout: VideoLayout,
        request: ResolvedRequest,
        pictures: Streams,
    ) -> WanPass:
        """Prepare one pass.

        Args:
            streams: ``text``, ``[1, L, text width]``, padded with zeros; for models with an image
                encoder also ``image``, the tokens of one picture or of two, ``[1, K, width]`` or
                ``[2, K / 2, width]``.
            layout: The video's tokens and their owners.
            request: The request.
            pictures: ``condition``, ``[1, C', F, H, W]``, a mask and the latents of the pictures'
                clip, for models whose input has channels for them; ``first_frame``,
                ``[1, C, 1, H, W]``, latents of the picture, for models with a timestep per token;
                empty for text to video.
        """
        text = streams["text"]
        dtype = self._any_expert.dtype
        image, condition = streams.get("image"), pictures.get("condition")
        first_frame = pictures.get("first_frame")
        whole_rotation = video_rotation(layout.grid, self._head_size, text.device)
        rotation = layout.shards.split(whole_rotation, layout.mesh, dim=0)
        return WanPass(
            attention=SelfAttentionContext(layout.shards, layout.mesh, rotation, self._kernel),
            text=text.to(dtype),
            image=None if image is None else image.reshape(1, -1, image.shape[-1]).to(dtype),
            condition=None if condition is None else layout.split_condition(condition).to(dtype),
            first_frame=None if first_frame is None else _own_first_frame(first_frame, layout),
        )

    def forward(self, tokens: torch.Tensor, step: Step, inputs: WanPass) -> torch.Tensor:
        """Return the velocity of the local tokens, ``[B, s, P]``."""
        expert = self.running_module(step)
        velocity: torch.Tensor = expert(tokens, step.timestep, inputs, self.run_blocks)
        return velocity

    def expert(self, name: str) -> WanExpert:
        """The expert of a component."""
        expert = self.experts[name]
        assert isinstance(expert, WanExpert)
        return expert

    @property
    def _any_expert(self) -> WanExpert:
        return self.expert(next(iter(self.experts)))


def is_high_noise(step: Step, boundary: float | None) -> bool:
    """Whether a step belongs to the high-noise expert and its guidance scale.

    Args:
        step: The step.
        boundary: Lowest timestep of the high-noise expert; None if it runs all steps.
    """
    return boundary is None or step.value >= boundary


def _own_first_frame(first_frame: torch.Tensor, layout: VideoLayout) -> torch.Tensor:
    """This rank's tokens of the first latent frame, ``[B, n, P]``, float32.

    A token spans one latent frame, so the frame's tokens are the leading ones of the video.

    Args:
        first_frame: ``[1, C, 1, H, W]``.
    """
    _, channels, _, height, width = first_frame.shape
    grid = LatentGrid((1, channels, 1, height, width), layout.grid.patch)
    shards = layout.shards.segment(range(grid.num_tokens))
    own = shards.split(grid.patchify(first_frame.float()), layout.mesh, dim=1)
    return own.expand(layout.grid.shape[0], -1, -1)
