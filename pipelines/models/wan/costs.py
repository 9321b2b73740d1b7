"""Cost model of Wan, from its configuration files alone.

Floating-point operations and parameters are exact. Memory traffic and peak memory are in units of
one activation, s x D x e bytes (tokens x model width x element size), as counted in the blocks'
forward passes with a torch dispatch mode. test_costs.py checks both against the code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from longtake.configs.request import ResolvedDecode
from longtake.pipelines.chunks import TOKENS_PER_CHUNK, chunks_of, largest_chunk
from longtake.pipelines.codec.tiles import Spans
from longtake.pipelines.costs import AttentionHeads, ModelCosts, Work
from longtake.pipelines.loading.tensor_shapes import Shape, matrices, num_values, shapes_of
from longtake.pipelines.models.wan.codec.config import VaeConfig
from longtake.pipelines.models.wan.codec.costs import AutoencoderCosts
from longtake.pipelines.models.wan.codec.tensors import vae_tensors
from longtake.pipelines.models.wan.codec.tiling import Tiling
from longtake.pipelines.models.wan.configs import TransformerConfig
from longtake.pipelines.models.wan.tensors import (
    FLOAT32_WEIGHTS,
    MODULATIONS,
    block_tensors,
    transformer_tensors,
)
from longtake.pipelines.text_encoders.configs import ClipVisionConfig, Umt5Config
from longtake.pipelines.text_encoders.tensors import (
    clip_vision_tensors,
    num_streaming_values,
    umt5_tensors,
)

TEXT_TOKENS = 512
"""Text keys of every cross attention: a prompt is padded with zeros, which the model attends to."""

_LAUNCHES_OUTSIDE = 35
"""Kernel launches of a pass outside the blocks."""


@dataclass(frozen=True)
class WanCosts(ModelCosts):
    """Costs of one checkpoint, and of one kind of request.

    Attributes:
        transformer: Configuration of the transformer, or of each expert.
        num_experts: Transformers of this configuration, of which a step runs one.
        vae: Configuration of the autoencoder.
        text_encoder: Configuration of the text encoder.
        image_encoder: Configuration of the image encoder; None for a model without image keys.
        text_keys: Text keys of every cross attention.
        per_token_timesteps: Whether the tokens of a given first frame have a timestep of their own.
        tokens_per_chunk: Largest number of tokens that what widens them treats at once.
        file_element_size: Released transformers are in float32: 57 GB for 14 B.
    """

    file_element_size: ClassVar[int] = 4

    transformer: TransformerConfig
    vae: VaeConfig
    text_encoder: Umt5Config
    image_encoder: ClipVisionConfig | None = None
    num_experts: int = 1
    text_keys: int = TEXT_TOKENS
    per_token_timesteps: bool = False
    tokens_per_chunk: int = TOKENS_PER_CHUNK

    @property
    def attention(self) -> AttentionHeads:  # type: ignore[override]
        """Self-attention, one per block; cross attention is not split over ranks."""
        config = self.transformer
        heads = config.num_attention_heads
        return AttentionHeads(config.num_layers, heads, heads, config.attention_head_dim)

    @property
    def token_values(self) -> int:  # type: ignore[override]
        """Latent channels times the patch volume."""
        return self.transformer.token_values

    @cached_property
    def transformer_shapes(self) -> Sequence[Shape]:
        """Shapes of the tensors of all experts, in the order of :func:`transformer_tensors`."""
        return self.num_experts * shapes_of(transformer_tensors(self.transformer))

    @cached_property
    def float32_shapes(self) -> Sequence[Shape]:
        """Shapes of embedders of timesteps, tables and norms, of all experts."""
        named = transformer_tensors(self.transformer)
        return self.num_experts * [shape for name, shape in named if FLOAT32_WEIGHTS.search(name)]

    @property
    def linear_shapes(self) -> Sequence[Shape]:
        """Shapes of the weights of all blocks' linear layers, of all experts."""
        return self.num_experts * self.transformer.num_layers * self.block_linear_shapes

    @cached_property
    def block_linear_shapes(self) -> list[Shape]:
        """Those of one block."""
        return matrices(block_tensors("", self.transformer))

    @property
    def block_parameters(self) -> int:
        """Parameters of a block; all are of the same size."""
        return self._block if self.transformer.num_layers else 0

    @property
    def non_block_parameters(self) -> int:
        """Parameters of the embedders and the output layers of one expert."""
        whole = self.transformer_parameters // self.num_experts
        return whole - self.transformer.num_layers * self._block

    @cached_property
    def other_parameters(self) -> Mapping[str, int]:
        """Parameters of the autoencoder (encoder and decoder), and of text and image encoder."""
        return {
            "autoencoder": num_values(vae_tensors(self.vae)),
            "text_encoders": self._text_parameters + self._image_parameters,
        }

    @cached_property
    def text_streaming_parameters(self) -> int:
        """Parameters on the device at a time while a prompt or pictures are encoded layer by layer:
        those of the encoder that has more of them there."""
        text = num_streaming_values(umt5_tensors(self.text_encoder))
        if self.image_encoder is None:
            return text
        return max(text, num_streaming_values(clip_vision_tensors(self.image_encoder)))

    @property
    def image_keys(self) -> int:
        """Image keys of every cross attention: the tokens of one picture, or of two."""
        encoder = self.image_encoder
        if encoder is None:
            return 0
        return self.transformer.pos_embed_seq_len or encoder.num_tokens

    def transformer_pass(self, num_tokens: int, num_text_tokens: int, element_size: int) -> Work:
        """Work of one forward pass: blocks on the local tokens, and the timestep's embedding and
        all cross attention's keys, which every rank computes.

        The keys do not depend on ``num_text_tokens``: text is padded. The embedded text and
        pictures are computed once a video, and not counted.
        """
        config, width = self.transformer, self.transformer.width
        keys = self.text_keys + self.image_keys
        wide = element_size >= 4
        units, units_per_key = self._block_traffic(wide=wide)
        head_units = 10 if wide else 23
        if self.per_token_timesteps:
            head_units += 17 if wide else 24
        traffic = config.num_layers * (units * num_tokens + units_per_key * keys)
        return Work(
            linear_flops=self._linear_flops(num_tokens),
            attention_flops=4 * config.num_layers * num_tokens * keys * width,
            memory_bytes=(traffic + head_units * num_tokens) * width * element_size,
            launches=config.num_layers * self._block_launches(num_tokens, wide=wide)
            + _LAUNCHES_OUTSIDE,
        )

    def _linear_flops(self, num_tokens: int) -> int:
        """Operations of the matrix products of one pass."""
        config, width = self.transformer, self.transformer.width
        block = 6 * width * width + 2 * width * config.ffn_dim
        per_token = config.num_layers * block + width * (config.values_in + config.token_values)
        keys = self.text_keys * width + self.image_keys * (config.added_kv_proj_dim or 0)
        once = config.num_layers * 2 * width * keys
        timesteps = 2 if self.per_token_timesteps else 1
        once += timesteps * width * (config.freq_dim + (1 + MODULATIONS) * width)
        return 2 * (per_token * num_tokens + once)

    def _block_launches(self, num_tokens: int, *, wide: bool) -> int:
        """Kernel launches of a block."""
        chunks = len(chunks_of(num_tokens, self.tokens_per_chunk))
        launches = 25 + 36 * chunks if wide else 39 + 44 * chunks
        return launches + (9 + 4 * chunks if self.image_keys else 0)

    def _block_traffic(self, *, wide: bool) -> tuple[float, int]:
        """Traffic of a block by token and by key, in units.

        Norms and gates are computed in float32, and so are rotary embeddings.

        Args:
            wide: Whether the weights are float32, so that nothing is converted.
        """
        config = self.transformer
        units = 60.5 if wide else 166.0
        units += 2 * config.ffn_dim / config.width
        if config.cross_attn_norm:
            units += 2 if wide else 4
        if self.image_keys:
            units += 3
        if self.per_token_timesteps:
            units += 22 if wide else 62
        return units, 11 if wide else 24

    def activation_bytes(
        self,
        num_tokens: int,
        element_size: int,
        *,
        ulysses: bool,
        ring: bool,
        head_share: float,
    ) -> int:
        """Peak activation memory of one forward pass, in bytes.

        The peak is the largest of a block's self-attention, a chunk of its feed-forward, the
        residual sum after that, in float32, and, with a modulation per token, the conversion of
        that to float32. The modulation itself adds to it, in the weights' dtype and as a sum in
        float32, and so do the latent tokens, the model's input, the velocity and the rotary
        embedding.
        """
        config, wide = self.transformer, element_size >= 4
        if ring:
            attention = 5 + ((8 if wide else 9) + ulysses) * head_share
        elif ulysses:
            attention = 5 + 6 * head_share
        else:
            attention = 6
        share = largest_chunk(num_tokens, self.tokens_per_chunk) / max(1, num_tokens)
        feed_forward = 4 + 2 * config.ffn_dim / config.width * share
        units = max(feed_forward, attention, 6 if wide else 10)
        if self.per_token_timesteps:
            summed = MODULATIONS * 4 / element_size
            units = max(units, 7 if wide else 1 + summed) + MODULATIONS + summed
        tokens = 4 * config.token_values + element_size * (config.values_in + config.token_values)
        tokens += 4 * config.attention_head_dim
        return int(num_tokens * (units * config.width * element_size + tokens))

    def text_encoding(self, max_tokens: int, element_size: int) -> Work:
        """Work of encoding one prompt at its maximum length, and the pictures."""
        config, pictures = self.text_encoder, 0
        if self.image_encoder is not None:
            pictures = self.image_keys // self.image_encoder.num_tokens
        text = self._text_parameters - config.vocab_size * config.d_model
        flops = 2 * (text * max_tokens + self._image_parameters * self.image_keys)
        layers = config.num_layers
        if self.image_encoder is not None:
            layers += pictures * self.image_encoder.num_hidden_layers
        read = element_size * (text + self._image_parameters)
        return Work(linear_flops=flops, memory_bytes=read, launches=25 * layers)

    def picture_encoding(self, latents_shape: Sequence[int], element_size: int) -> Work:
        """Work of encoding a clip of all frames, of which the pictures are some; or of the first
        frame alone, if it stands in the latents themselves."""
        shape = self._encoded_shape(latents_shape)
        return Work() if shape is None else AutoencoderCosts(self.vae).encoding(shape, element_size)

    def picture_bytes(self, latents_shape: Sequence[int], element_size: int) -> int:
        """Peak memory of encoding the clip, or the first frame, in bytes."""
        shape = self._encoded_shape(latents_shape)
        costs = AutoencoderCosts(self.vae)
        return 0 if shape is None else costs.encoding_peak_bytes(shape, element_size)

    def _encoded_shape(self, latents_shape: Sequence[int]) -> tuple[int, ...] | None:
        """Latents that pictures are encoded to, ``(F, H, W)``; None without pictures."""
        frames, *size = latents_shape
        if self.transformer.in_channels != self.transformer.latent_channels:
            return frames, *size
        return (1, *size) if self.per_token_timesteps else None

    def decode_spans(self, latents_shape: Sequence[int], request: ResolvedDecode) -> Spans:
        """Tile spans identical to diffusers'."""
        return Tiling(self.vae, request, decodes=True).spans(latents_shape)

    def tile_decoding(self, shape: Sequence[int], element_size: int) -> Work:
        """Work of decoding one tile; see :class:`AutoencoderCosts`."""
        return AutoencoderCosts(self.vae).decoding(shape, element_size)

    def tile_bytes(self, shape: Sequence[int], element_size: int) -> int:
        """Peak memory of decoding one tile, in bytes; see :class:`AutoencoderCosts`."""
        return AutoencoderCosts(self.vae).peak_bytes(shape, element_size)

    @cached_property
    def _block(self) -> int:
        """Parameters of a block."""
        return num_values(block_tensors("", self.transformer))

    @cached_property
    def _text_parameters(self) -> int:
        return num_values(umt5_tensors(self.text_encoder))

    @cached_property
    def _image_parameters(self) -> int:
        return (
            0 if self.image_encoder is None else num_values(clip_vision_tensors(self.image_encoder))
        )
