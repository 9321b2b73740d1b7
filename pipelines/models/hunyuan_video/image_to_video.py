"""HunyuanVideo image to video, loaded on one rank."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from longtake.configs.request import ResolvedRequest
from longtake.parallel import World
from longtake.pipelines.base import NO_PICTURES, ImageToVideoPipeline, LoadOptions, Streams
from longtake.pipelines.codec.decode import encode_videos
from longtake.pipelines.codec.picture import Pixels, black_picture
from longtake.pipelines.loading.checkpoint import Checkpoint
from longtake.pipelines.models.hunyuan_video.options import HunyuanVideoOptions
from longtake.pipelines.models.hunyuan_video.pipeline import HunyuanVideo
from longtake.pipelines.models.hunyuan_video.spec import IMAGE_STRIDES, NEGATIVE_IMAGE_STRIDE
from longtake.pipelines.spec import LatentGrid, ModelSpec

if TYPE_CHECKING:
    from longtake.pipelines.models.hunyuan_video.conditioner.image_text import ImageTextEncoders

_NOISE_SHARE = 0.999
"""Weight of the noise in the initial latents of stable mode; the rest is the picture."""


class HunyuanVideoImageToVideo(HunyuanVideo, ImageToVideoPipeline):
    """HunyuanVideo-I2V, with token_replace or latent_concat."""

    _text: ImageTextEncoders

    @staticmethod
    def _load_text(
        checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype
    ) -> ImageTextEncoders:
        from longtake.pipelines.models.hunyuan_video.conditioner.image_text import ImageTextEncoders

        return ImageTextEncoders(checkpoint, device, dtype)

    def encode(
        self,
        request: ResolvedRequest,
        pictures: Mapping[str, Pixels] = NO_PICTURES,
        *,
        negative: bool = False,
    ) -> Streams:
        """Encode the prompt to ``text`` (picture tokens, then prompt tokens) and ``pooled``.

        As in diffusers, a negative prompt is encoded with a black picture, for which token_replace
        uses twice as many tokens.
        """
        if negative:
            prompt = request.negative_prompt or ""
            picture, stride = black_picture(request.height, request.width), NEGATIVE_IMAGE_STRIDE
        else:
            assert self.denoiser.image_condition is not None
            picture, stride = pictures["image"], IMAGE_STRIDES[self.denoiser.image_condition]
            prompt = request.prompt
        template = HunyuanVideoOptions.of(request).prompt_template
        return self._text.encode_with_picture(
            prompt, picture, template, request.max_sequence_length, stride
        )

    def encode_image(
        self, pixels: torch.Tensor, request: ResolvedRequest, world: World
    ) -> torch.Tensor:
        """Return the scaled mean of the encoder's distribution.

        The picture is encoded untiled, whatever the decoding mode: at 720p this takes no more
        memory than one tile of the decoder.
        """
        whole = {"decode": "whole", "decode_tile_size": None, "decode_tile_stride": None}
        encoder = self.encoder(request.model_copy(update=whole))
        moments = encode_videos(encoder, pixels, world)
        mean = moments.chunk(2, dim=1)[0]
        return mean.float() * float(self._vae.config.scaling_factor)

    def initial_latents(
        self, grid: LatentGrid, request: ResolvedRequest, image: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the initial latents.

        They are noise, blended in stable mode with a thousandth of the picture in every frame. With
        token_replace the first frame is the picture.
        """
        assert image is not None
        start, picture = grid.noise(request.seed), image.cpu()
        if HunyuanVideoOptions.of(request).i2v_mode == "stable":
            share = torch.tensor(_NOISE_SHARE)
            start = start * share + picture * (1 - share)
        if self.denoiser.image_condition == "token_replace":
            start[:, :, :1] = picture
        return start


def load_pipeline(
    checkpoint: Checkpoint,
    spec: ModelSpec,
    world: World,
    options: LoadOptions,
    on_component: Callable[[str], None],
) -> HunyuanVideo:
    """Load text to video or image to video, as the specification says; see HunyuanVideo."""
    kind = HunyuanVideoImageToVideo if spec.pictures else HunyuanVideo
    return kind(checkpoint, spec, world, options, on_component)


def load_codec(
    checkpoint: Checkpoint, spec: ModelSpec, world: World, options: LoadOptions
) -> HunyuanVideo:
    """Load the autoencoder alone."""
    return HunyuanVideo(
        checkpoint, spec, world, replace(options, autoencoder_only=True), lambda name: None
    )
