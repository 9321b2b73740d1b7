"""HunyuanVideo image to video, loaded on one rank."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from longtake.configs.request import ResolvedRequest
from longtake.parallel import World
from longtake.pipelines.codec.picture import Pixels, black_picture
from longtake.pipelines.family import Streams
from longtake.pipelines.loading.checkpoint import Checkpoint
from longtake.pipelines.loading.plan import ComponentPlan
from longtake.pipelines.models.hunyuan_video.options import HunyuanVideoOptions
from longtake.pipelines.models.hunyuan_video.pipeline import HunyuanVideo
from longtake.pipelines.models.hunyuan_video.spec import IMAGE_STRIDES, NEGATIVE_IMAGE_STRIDE
from longtake.pipelines.spec import LatentGrid

if TYPE_CHECKING:
    from longtake.pipelines.models.hunyuan_video.conditioner.image_text import ImageTextEncoders

_NOISE_SHARE = 0.999
"""Weight of the noise in the initial latents of stable mode; the rest is the picture."""


class HunyuanVideoImageToVideo(HunyuanVideo):
    """HunyuanVideo-I2V, with token_replace or latent_concat."""

    _text: ImageTextEncoders

    @staticmethod
    def _load_text(
        checkpoint: Checkpoint, device: torch.device, plan: ComponentPlan
    ) -> ImageTextEncoders:
        from longtake.pipelines.models.hunyuan_video.conditioner.image_text import ImageTextEncoders

        return ImageTextEncoders(checkpoint, device, plan)

    def encode(self, request: ResolvedRequest, pictures: Mapping[str, Pixels]) -> list[Streams]:
        """Encode each prompt to ``text`` (picture tokens, then prompt tokens) and ``pooled``.

        As in diffusers, a negative prompt is encoded with a black picture, for which token_replace
        uses twice as many tokens.
        """
        assert self.denoiser.image_condition is not None
        template = HunyuanVideoOptions.of(request).prompt_template
        inputs = [
            (pictures["image"], IMAGE_STRIDES[self.denoiser.image_condition]),
            (black_picture(request.height, request.width), NEGATIVE_IMAGE_STRIDE),
        ]
        return [
            self._text.encode_with_picture(
                prompt, picture, template, request.max_sequence_length, stride
            )
            for prompt, (picture, stride) in zip(self.spec.prompts(request), inputs, strict=False)
        ]

    def encode_pictures(self, videos: Streams, request: ResolvedRequest, world: World) -> Streams:
        """Return ``image``, ``[1, C, 1, H, W]``, with the scale of denoised latents."""
        return {"image": self.codec.encode_picture(videos["image"], request, world)}

    def initial_latents(
        self, grid: LatentGrid, request: ResolvedRequest, pictures: Streams
    ) -> torch.Tensor:
        """Return the initial latents.

        They are noise, blended in stable mode with a thousandth of the picture in every frame. With
        token_replace the first frame is the picture.
        """
        start, picture = grid.noise(request.seed), pictures["image"].cpu()
        if HunyuanVideoOptions.of(request).i2v_mode == "stable":
            share = torch.tensor(_NOISE_SHARE)
            start = start * share + picture * (1 - share)
        if self.denoiser.image_condition == "token_replace":
            start[:, :, :1] = picture
        return start
