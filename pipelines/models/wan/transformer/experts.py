"""One of Wan's transformers on this rank's tokens.

Legend: B videos, C channels, s local video tokens, P values per token, D model width, L text
tokens, K image tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from diffusers import WanTransformer3DModel
from torch import nn

from longtake.pipelines.chunks import TOKENS_PER_CHUNK
from longtake.pipelines.models.wan.transformer.attention import (
    CrossAttentionKeys,
    SelfAttentionContext,
    UspAttnProcessor,
)
from longtake.pipelines.runtime.block_runner import BlockRunner
from longtake.pipelines.tokens import ChunkedFeedForward, row_of_patches


@dataclass(frozen=True)
class WanPass:
    """Inputs of one pass that are constant over the steps of a video.

    Attributes:
        attention: Self-attention over the video.
        text: Text padded with zeros, ``[1, L, text width]``.
        image: Image tokens of one or two pictures, ``[1, K, image width]``; None for models without
            an image encoder.
        condition: Values concatenated to each local token, ``[B, s, P']``: a mask and the latents
            of the pictures' clip; None for models without such channels.
        first_frame: Local tokens of the first latent frame, ``[B, n, P]``, float32, which are the
            leading n. They replace the noise in the model's input and have timestep 0. None if the
            video starts from no picture, or the model takes it another way.
        keys: Keys of cross attention by expert. An expert's first step computes them, when its
            weights are on the device and gathered.
    """

    attention: SelfAttentionContext
    text: torch.Tensor
    image: torch.Tensor | None = None
    condition: torch.Tensor | None = None
    first_frame: torch.Tensor | None = None
    keys: dict[nn.Module, CrossAttentionKeys] = field(default_factory=dict)


class WanExpert(nn.Module):
    """Runs diffusers' embedders, blocks and output layers on the local tokens.

    It has a ``forward`` of its own so that its weights can be sharded apart from another expert's.

    Args:
        transformer: Any of Wan's text-to-video and image-to-video transformers. Its attention is
            replaced by attention across ranks.
        tokens_per_chunk: Largest number of tokens that what widens them treats at once.
    """

    def __init__(
        self, transformer: WanTransformer3DModel, tokens_per_chunk: int = TOKENS_PER_CHUNK
    ) -> None:
        super().__init__()
        self.transformer = transformer
        self._tokens_per_chunk = tokens_per_chunk
        config = transformer.config
        self._patch: tuple[int, int, int] = tuple(config.patch_size)
        self._width: int = config.num_attention_heads * config.attention_head_dim
        self._out_channels: int = config.out_channels or config.in_channels
        transformer.set_attn_processor(UspAttnProcessor(tokens_per_chunk))

    def chunk_feed_forwards(self) -> None:
        """Run the feed-forwards over chunks of tokens.

        Called once, after the weights were loaded: wrapped modules are one name deeper than those
        of the files.
        """
        for block in self.transformer.blocks:
            block.ffn = ChunkedFeedForward(block.ffn, self._tokens_per_chunk)

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The transformer's blocks, in execution order."""
        return list(self.transformer.blocks)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the tokens in the blocks."""
        dtype: torch.dtype = self.transformer.patch_embedding.weight.dtype
        return dtype

    def forward(
        self,
        tokens: torch.Tensor,
        timestep: torch.Tensor,
        inputs: WanPass,
        run_blocks: BlockRunner,
    ) -> torch.Tensor:
        """Predict the velocity of the local tokens.

        Args:
            tokens: ``[B, s, P]``, float32.
            timestep: Scalar.
            inputs: Inputs of the pass.
            run_blocks: Runs the blocks.

        Returns:
            ``[B, s, P]``, in the dtype of the weights.
        """
        time, modulation = self._embed_time(timestep, tokens.shape[1], inputs)
        keys = self._keys(inputs)
        (hidden,) = run_blocks(
            self.blocks,
            [self._embed(self._values(tokens, inputs))],
            keys,
            modulation,
            inputs.attention,
        )
        return self._head(hidden, time)

    def _values(self, tokens: torch.Tensor, inputs: WanPass) -> torch.Tensor:
        """The model's input, ``[B, s, P + P']``, in the dtype of the weights."""
        if inputs.first_frame is not None:
            later = tokens[:, inputs.first_frame.shape[1] :]
            tokens = torch.cat([inputs.first_frame, later], dim=1)
        values = tokens.to(self.dtype)
        if inputs.condition is not None:
            values = torch.cat([values, inputs.condition], dim=-1)
        return values

    def _embed(self, values: torch.Tensor) -> torch.Tensor:
        """Embed tokens ``[B, s, P + P']`` as one row of patches; returns ``[B, s, D]``."""
        batch, num_tokens, _ = values.shape
        if num_tokens == 0:
            return values.new_empty(batch, 0, self._width)
        row = row_of_patches(values, self._patch)
        embedded: torch.Tensor = self.transformer.patch_embedding(row)
        return embedded.flatten(2).transpose(1, 2).contiguous()

    def _embed_time(
        self, timestep: torch.Tensor, num_tokens: int, inputs: WanPass
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The embedded timestep and the modulation of the blocks.

        Tokens of a given first frame have timestep 0. A rank that owns some of them needs both for
        each of its tokens; any other rank needs one for all.

        Returns:
            ``[1 or s, D]``, and ``[1, 6, D]`` or ``[1, s, 6, D]``.
        """
        timesteps = timestep[None]
        if inputs.first_frame is not None:
            timesteps = torch.stack([timestep, torch.zeros_like(timestep)])
        # The text is embedded once a video, so there is none here.
        no_text = inputs.text.expand(len(timesteps), -1, -1)[:, :0]
        time, modulation, _, _ = self.transformer.condition_embedder(timesteps, no_text)
        modulation = modulation.unflatten(1, (6, -1))
        num_still = 0 if inputs.first_frame is None else inputs.first_frame.shape[1]
        if num_still == 0:
            return time[:1], modulation[:1]
        which = torch.zeros(num_tokens, dtype=torch.long, device=time.device)
        which[:num_still] = 1
        return time[which], modulation[which][None]

    def _keys(self, inputs: WanPass) -> CrossAttentionKeys:
        """The keys of cross attention, which do not depend on the step."""
        if self not in inputs.keys:
            embedder, image = self.transformer.condition_embedder, inputs.image
            if image is not None:
                if embedder.image_embedder.pos_embed is not None:
                    image = image.unflatten(1, (2, -1)).flatten(0, 1)  # it takes one picture a row
                image = embedder.image_embedder(image)
            text = embedder.text_embedder(inputs.text)
            inputs.keys[self] = CrossAttentionKeys(text, image, inputs.attention.kernel)
        return inputs.keys[self]

    def _head(self, hidden: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        """Project to velocities ``[B, s, P]``.

        The projection gives a token's values in the order (frame, row, column, channel); those of
        the latents are in the order (channel, frame, row, column).
        """
        model = self.transformer
        shift, scale = (model.scale_shift_table + time[:, None]).unbind(1)
        normalized: torch.Tensor = model.norm_out(hidden.float()) * (1 + scale) + shift
        values: torch.Tensor = model.proj_out(normalized.type_as(hidden))
        values = values.unflatten(-1, (math.prod(self._patch), self._out_channels))
        return values.transpose(-1, -2).flatten(-2)
