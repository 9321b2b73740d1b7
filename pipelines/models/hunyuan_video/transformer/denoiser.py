"""HunyuanVideo's transformer on tokens split across ranks.

Legend: B videos, C channels, F H W latent frames, height and width, S video tokens, s local video
tokens, L text tokens of the whole prompt, P values per token, D model width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers import HunyuanVideoTransformer3DModel
from torch import nn

from longtake.configs.request import ResolvedRequest
from longtake.parallel import TokenShards
from longtake.parallel.mesh import sequence_rank
from longtake.pipelines.chunks import TOKENS_PER_CHUNK
from longtake.pipelines.family import Denoiser, Streams
from longtake.pipelines.layout import VideoLayout
from longtake.pipelines.models.hunyuan_video.transformer.attention import (
    AttentionContext,
    UspAttnProcessor,
)
from longtake.pipelines.models.hunyuan_video.transformer.feed_forward import (
    chunk_double_block,
    chunk_single_block,
)
from longtake.pipelines.models.hunyuan_video.transformer.rope import video_rotation
from longtake.pipelines.runtime.stepper import Step
from longtake.pipelines.spec import LatentGrid, shards_of
from longtake.pipelines.tokens import row_of_patches


@dataclass(frozen=True)
class HunyuanVideoPass:
    """Inputs of one pass that are constant over the steps of a video.

    Attributes:
        attention: Attention over ``[video ; text]``.
        text_shards: Ownership of the text tokens by rank.
        text: Whole text embedding, ``[B, L, text width]``: it is refined before it is split.
        pooled: Pooled text embedding, ``[B, pooled width]``.
        guidance: Guidance scale x 1000 to embed, ``[B]``, float32.
        num_first_frame_tokens: Number of leading local tokens that belong to the first frame, which
            is the picture (token_replace). They are modulated at noise level 0, and their velocity
            is 0.
        concat_values: Values concatenated to each local token (latent_concat), ``[B, s, P']``: the
            picture's latents and a mask; None without latent_concat.
    """

    attention: AttentionContext
    text_shards: TokenShards
    text: torch.Tensor
    pooled: torch.Tensor
    guidance: torch.Tensor
    num_first_frame_tokens: int = 0
    concat_values: torch.Tensor | None = None


class HunyuanVideoDenoiser(Denoiser[HunyuanVideoPass]):
    """Runs diffusers' embedders, refiner, blocks and output layers on the local tokens.

    Args:
        transformer: Text-to-video or image-to-video transformer (token_replace or latent_concat).
            The attention of its blocks is replaced by attention across ranks.
        kernel: Name of the local attention kernel.
        tokens_per_chunk: Largest number of tokens that what widens them treats at once.

    Attributes:
        image_condition: "token_replace" or "latent_concat"; None for text to video.
    """

    def __init__(
        self,
        transformer: HunyuanVideoTransformer3DModel,
        kernel: str = "auto",
        tokens_per_chunk: int = TOKENS_PER_CHUNK,
    ) -> None:
        super().__init__()
        self.transformer = transformer
        self._kernel = kernel
        self._tokens_per_chunk = tokens_per_chunk
        config = transformer.config
        self.image_condition: str | None = config.image_condition_type
        self._patch = (config.patch_size_t, config.patch_size, config.patch_size)
        self._width = config.num_attention_heads * config.attention_head_dim
        across_ranks = UspAttnProcessor(tokens_per_chunk)
        transformer.set_attn_processor(
            {
                name: processor if name.startswith("context_embedder.") else across_ranks
                for name, processor in transformer.attn_processors.items()
            }
        )

    @property
    def chains(self) -> Sequence[Sequence[nn.Module]]:
        """The double-stream blocks, then the single-stream ones."""
        model = self.transformer
        return [[*model.transformer_blocks, *model.single_transformer_blocks]]

    def chunk_feed_forwards(self) -> None:
        """Run the feed-forwards over chunks of tokens.

        Called once, after the weights were loaded: wrapped modules are one name deeper than those
        of the files.
        """
        for block in self.transformer.transformer_blocks:
            chunk_double_block(block, self._tokens_per_chunk)
        for block in self.transformer.single_transformer_blocks:
            chunk_single_block(block, self._tokens_per_chunk)

    def prepare(
        self, streams: Streams, layout: VideoLayout, request: ResolvedRequest, pictures: Streams
    ) -> HunyuanVideoPass:
        """Prepare one pass.

        Args:
            streams: ``text``, ``[1, L, text width]``, and ``pooled``, ``[1, pooled width]``.
            layout: The video's tokens and their owners.
            request: The request.
            pictures: ``image``, the latents of the picture, ``[1, C, 1, H, W]``; empty for text to
                video.
        """
        grid, mesh, batch = layout.grid, layout.mesh, layout.grid.shape[0]
        device, dtype = streams["text"].device, self.transformer.dtype
        shards, video_shards, text_shards = shards_of(
            grid.num_tokens, streams["text"].shape[1], layout.dims
        )
        rotation = video_rotation(self.transformer.rope, grid, request.num_frames, device)
        no_rotation = rotation.new_ones(text_shards.num_tokens, rotation.shape[1])
        own_rotation = torch.cat(
            [video_shards.split(rotation, mesh, dim=0), text_shards.split(no_rotation, mesh, dim=0)]
        )
        num_first_frame_tokens, concat_values = 0, None
        if self.image_condition == "token_replace":
            frame_shards = video_shards.segment(range(grid.num_tokens // grid.tokens_shape[0]))
            num_first_frame_tokens = frame_shards.counts[sequence_rank(mesh)]
        elif self.image_condition == "latent_concat":
            condition = _picture_and_mask(pictures["image"].to(device), grid)
            concat_values = layout.split_condition(condition.to(dtype))
        return HunyuanVideoPass(
            attention=AttentionContext(shards, mesh, own_rotation, self._kernel),
            text_shards=text_shards,
            text=streams["text"].to(dtype).expand(batch, -1, -1),
            pooled=streams["pooled"].to(dtype).expand(batch, -1),
            guidance=torch.full((batch,), request.guidance_scale * 1000.0, device=device),
            num_first_frame_tokens=num_first_frame_tokens,
            concat_values=concat_values,
        )

    def forward(self, tokens: torch.Tensor, step: Step, inputs: HunyuanVideoPass) -> torch.Tensor:
        """Return the velocity of the local video tokens, ``[B, s, P]``."""
        model, context = self.transformer, inputs.attention
        timesteps = step.timestep.expand(len(tokens))
        modulation, first_frame_modulation = model.time_text_embed(
            timesteps, inputs.pooled, inputs.guidance
        )
        # Blocks without token_replace ignore the first frame's.
        first_frame = (first_frame_modulation, inputs.num_first_frame_tokens)
        arguments = (modulation, None, context, *first_frame)
        segments = self._segments(tokens, timesteps, inputs)
        first_single = next(iter(model.single_transformer_blocks), None)
        segments = self.run_blocks(
            model.transformer_blocks, segments, *arguments, then=first_single
        )
        # A single-stream block takes its sequence in two parts, split at any token. The second part
        # must not be empty, and a rank may own no text, so split off the last token.
        local = torch.cat(segments, dim=1)
        segments = list(local.tensor_split((max(local.shape[1] - 1, 0),), dim=1))
        del local  # freed after the first block
        segments = self.run_blocks(model.single_transformer_blocks, segments, *arguments)
        video = torch.cat(segments, dim=1)[:, : tokens.shape[1]]
        velocity: torch.Tensor = model.proj_out(model.norm_out(video, modulation))
        velocity[:, : inputs.num_first_frame_tokens] = 0
        return velocity

    def _segments(
        self, tokens: torch.Tensor, timesteps: torch.Tensor, inputs: HunyuanVideoPass
    ) -> list[torch.Tensor]:
        """The embedded local tokens: video, ``[B, s, D]``, and text."""
        values = tokens.to(inputs.text.dtype)
        if inputs.concat_values is not None:
            values = torch.cat([values, inputs.concat_values], dim=-1)
        text = self.transformer.context_embedder(inputs.text, timesteps)
        return [self._embed(values), inputs.text_shards.split(text, inputs.attention.mesh, dim=1)]

    def _embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """Embed tokens ``[B, s, P]`` as one row of patches; returns ``[B, s, D]``."""
        batch, num_tokens, _ = tokens.shape
        if num_tokens == 0:
            return tokens.new_empty(batch, 0, self._width)
        row = row_of_patches(tokens, self._patch)
        embedded: torch.Tensor = self.transformer.x_embedder(row)
        return embedded


def _picture_and_mask(image: torch.Tensor, grid: LatentGrid) -> torch.Tensor:
    """The condition of latent_concat, ``[1, C + 1, F, H, W]``.

    It is the picture's latents and a mask channel of ones in the first frame, and zeros in all
    later frames.

    Args:
        image: Latents of the picture, ``[1, C, 1, H, W]``.
    """
    _, channels, *size = grid.shape
    condition = image.new_zeros(1, channels + 1, *size)
    condition[:, :channels, :1] = image
    condition[:, channels, :1] = 1
    return condition
