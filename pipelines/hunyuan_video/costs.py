"""What HunyuanVideo's work comes to, from its configuration files alone.

Floating-point operations and parameters are exact; bytes through memory and bytes held at one time
are counted in units of one activation, s x D x e bytes, as torch's dispatcher counts them in the
blocks' forwards (tests/unit/test_costs.py holds both to the code).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from longtake.configs.request import ResolvedDecode
from longtake.pipelines.costs import AttentionHeads, ModelCosts, Work, count
from longtake.pipelines.hunyuan_video.autoencoder_costs import AutoencoderCosts
from longtake.pipelines.hunyuan_video.configs import (
    ClipTextConfig,
    LlamaConfig,
    LlavaConfig,
    TransformerConfig,
    VaeConfig,
)
from longtake.pipelines.hunyuan_video.tiling import Tiling
from longtake.pipelines.tiles import Spans

Shape = tuple[int, ...]

_TEMPLATE_TOKENS = 95
"""Of diffusers' prompt template, in front of the prompt: encoded, then cropped."""

_REFINER_RATIO = 4
"""Width of a refiner block's feed-forward, over its own: diffusers does not configure it."""

_FREQUENCIES = 256
"""Values that a timestep or a guidance scale is spelled out in."""


@dataclass(frozen=True)
class HunyuanVideoCosts(ModelCosts):
    """The costs of one checkpoint."""

    transformer: TransformerConfig
    vae: VaeConfig
    text_encoder: LlamaConfig | LlavaConfig
    clip: ClipTextConfig

    @property
    def llama(self) -> LlamaConfig:
        """Of the text encoder, LLaVA's own where that is one."""
        encoder = self.text_encoder
        return encoder.text_config if isinstance(encoder, LlavaConfig) else encoder

    @property
    def attention(self) -> AttentionHeads:  # type: ignore[override]
        """One attention a block; as many KV heads as query heads."""
        config = self.transformer
        return AttentionHeads(
            config.num_layers + config.num_single_layers,
            config.num_attention_heads,
            config.num_attention_heads,
            config.attention_head_dim,
        )

    @property
    def token_values(self) -> int:  # type: ignore[override]
        """Channels times the patch."""
        return self.transformer.token_values

    @cached_property
    def transformer_shapes(self) -> Sequence[Shape]:
        """In the order: embedders, refiner, double-stream blocks, single-stream blocks, output."""
        config, width = self.transformer, self.transformer.width
        patch: Shape = (
            width,
            config.in_channels,
            config.patch_size_t,
            config.patch_size,
            config.patch_size,
        )
        shapes: list[Shape] = [patch, (width,)]
        shapes += _two_layers(_FREQUENCIES, width) + _two_layers(config.text_embed_dim, width)
        shapes += _linear(config.text_embed_dim, width)
        shapes += self._refiner_block * config.num_refiner_layers
        embedded = [_FREQUENCIES, config.pooled_projection_dim]
        embedded += [_FREQUENCIES] if config.guidance_embeds else []
        for size in embedded:
            shapes += _two_layers(size, width)
        shapes += self._double_block * config.num_layers
        shapes += self._single_block * config.num_single_layers
        out = (
            config.patch_size_t * config.patch_size**2 * (config.out_channels or config.in_channels)
        )
        return shapes + _linear(width, 2 * width) + _linear(width, out)

    @property
    def block_parameters(self) -> int:
        """Of a double-stream block, or a single-stream one where there is no other."""
        blocks = []
        if self.transformer.num_layers:
            blocks.append(count(self._double_block))
        if self.transformer.num_single_layers:
            blocks.append(count(self._single_block))
        return max(blocks, default=0)

    @property
    def parameters_outside(self) -> int:
        """Of embedders, refiner and output."""
        config = self.transformer
        blocks = config.num_layers * count(self._double_block)
        blocks += config.num_single_layers * count(self._single_block)
        return self.transformer_parameters - blocks

    @property
    def other_parameters(self) -> Mapping[str, int]:
        """The autoencoder, both directions; LLaMA and CLIP."""
        return {
            "autoencoder": AutoencoderCosts(self.vae).parameters,
            "text_encoders": _llama_parameters(self.llama)
            + _clip_parameters(self.clip)
            + self._vision_parameters
            + self._head_parameters,
        }

    def transformer_pass(self, num_tokens: int, num_text_tokens: int, element_size: int) -> Work:
        """Blocks on this rank's tokens; embedders, refiner and modulation, which all ranks do."""
        config, width = self.transformer, self.transformer.width
        num_blocks = config.num_layers + config.num_single_layers
        mlp = config.mlp_width
        of_a_token = 2 * num_blocks * (4 * width * width + 2 * width * mlp)
        of_a_token += 2 * width * (config.values_in + config.token_values)  # in, and out
        once = self.transformer_parameters - self._streamed_parameters  # embeddings, modulation
        refined = config.num_refiner_layers * (4 + 2 * _REFINER_RATIO) * width * width
        of_a_text_token = 2 * (config.text_embed_dim * width + refined)
        attention = 4 * config.num_refiner_layers * num_text_tokens**2 * width
        unit = num_tokens * width * element_size
        wide = element_size >= 4
        units = (27.5 if wide else 44.5) + 4 * config.mlp_ratio
        units += (14 if wide else 34) if config.qk_norm else 0
        return Work(
            linear_flops=of_a_token * num_tokens + of_a_text_token * num_text_tokens + 2 * once,
            attention_flops=attention,
            memory_bytes=unit * (units * num_blocks + 11) + once * element_size,
            launches=80 * (config.num_layers + 1) + 40 * config.num_single_layers,
        )

    def activation_bytes(
        self,
        num_tokens: int,
        element_size: int,
        *,
        ulysses: bool,
        ring: bool,
        head_share: float,
    ) -> int:
        """The larger of a single-stream block's feed-forward and its attention, beside which the
        feed-forward's result waits; the latents' tokens, their velocity and their rotation."""
        config, wide = self.transformer, element_size >= 4
        if ring:
            attention = 7 + 9 * head_share if wide else 8 + 11 * head_share
        elif ulysses:
            attention = 7 + 6 * head_share if wide else 8 + 6 * head_share
        else:
            attention = 11 if wide else 12
        units = max(8 + 2 * config.mlp_ratio, attention + config.mlp_ratio)
        tokens = (4 + element_size) * config.token_values + 4 * config.attention_head_dim
        return int(num_tokens * (units * config.width * element_size + tokens))

    def text_encoding(self, max_tokens: int, element_size: int) -> Work:
        """LLaMA over template and prompt of their largest length; CLIP over its own. LLaVA over the
        picture's patches besides, after its tower."""
        llama = _llama_parameters(self.llama) - self.llama.vocab_size * self.llama.hidden_size
        clip = _clip_parameters(self.clip) - self.clip.vocab_size * self.clip.hidden_size
        patches = self._num_patches
        num_tokens = max_tokens + _TEMPLATE_TOKENS + patches
        flops = 2 * (llama * num_tokens + clip * self.clip.max_position_embeddings)
        flops += 2 * self._vision_parameters * patches
        layers = self.llama.num_hidden_layers + self.clip.num_hidden_layers
        read = element_size * (llama + clip + self._vision_parameters)
        return Work(linear_flops=flops, memory_bytes=read, launches=25 * layers)

    def decode_spans(self, latents_shape: Sequence[int], request: ResolvedDecode) -> Spans:
        """As diffusers cuts them."""
        vae = self.vae
        tiling = Tiling(
            request, vae.temporal_compression_ratio, vae.spatial_compression_ratio, decodes=True
        )
        return tiling.spans(latents_shape)

    def tile_decoding(self, cells: Sequence[int], element_size: int) -> Work:
        """See :class:`AutoencoderCosts`."""
        return AutoencoderCosts(self.vae).decoding(cells, element_size)

    def tile_bytes(self, cells: Sequence[int], element_size: int) -> int:
        """See :class:`AutoencoderCosts`."""
        return AutoencoderCosts(self.vae).peak_bytes(cells, element_size)

    @property
    def _num_patches(self) -> int:
        encoder = self.text_encoder
        return encoder.num_patches if isinstance(encoder, LlavaConfig) else 0

    @property
    def _vision_parameters(self) -> int:
        """LLaVA's tower and the two layers behind it."""
        if not isinstance(self.text_encoder, LlavaConfig):
            return 0
        vision, words = self.text_encoder.vision_config, self.llama.hidden_size
        width, patch = vision.hidden_size, 3 * vision.patch_size**2
        positions = (vision.image_size // vision.patch_size) ** 2 + 1
        embedded = width * (patch + 1 + positions)
        layers = vision.num_hidden_layers * _clip_layer(width, vision.intermediate_size)
        behind = count(_linear(width, words) + _linear(words, words))
        return embedded + layers + 4 * width + behind

    @property
    def _head_parameters(self) -> int:
        """LLaVA's words again, which are not used."""
        if isinstance(self.text_encoder, LlavaConfig) and not self.text_encoder.tied:
            return self.llama.vocab_size * self.llama.hidden_size
        return 0

    @property
    def _double_block(self) -> list[Shape]:
        width, mlp = (
            self.transformer.width,
            int(self.transformer.width * self.transformer.mlp_ratio),
        )
        stream = _linear(width, 6 * width) + self._norms + _linear(width, width) * 4
        return 2 * (stream + _linear(width, mlp) + _linear(mlp, width))

    @property
    def _single_block(self) -> list[Shape]:
        width, mlp = (
            self.transformer.width,
            int(self.transformer.width * self.transformer.mlp_ratio),
        )
        attention = self._norms + _linear(width, width) * 3
        return (
            attention
            + _linear(width, 3 * width)
            + _linear(width, mlp)
            + _linear(width + mlp, width)
        )

    @property
    def _refiner_block(self) -> list[Shape]:
        width = self.transformer.width
        wide = _REFINER_RATIO * width
        norms: list[Shape] = [(width,)] * 4
        return (
            norms
            + _linear(width, width) * 4
            + _linear(width, wide)
            + _linear(wide, width)
            + _linear(width, 2 * width)
        )

    @property
    def _norms(self) -> list[Shape]:
        """Of queries and keys."""
        return [(self.transformer.attention_head_dim,)] * (2 if self.transformer.qk_norm else 0)

    @property
    def _streamed_parameters(self) -> int:
        """Those that multiply tokens: of video or text in the blocks, of text in the refiner."""
        config, width = self.transformer, self.transformer.width
        mlp = config.mlp_width
        block = 4 * width * width + 2 * width * mlp
        refiner = (4 + 2 * _REFINER_RATIO) * width * width * config.num_refiner_layers
        streams = 2 * config.num_layers + config.num_single_layers
        return (
            streams * block
            + refiner
            + config.text_embed_dim * width
            + width * (config.values_in + config.token_values)
        )


def _linear(size_in: int, size_out: int) -> list[Shape]:
    """A layer's weight and bias."""
    return [(size_out, size_in), (size_out,)]


def _two_layers(size_in: int, width: int) -> list[Shape]:
    return _linear(size_in, width) + _linear(width, width)


def _llama_parameters(config: LlamaConfig) -> int:
    width, wide = config.hidden_size, config.intermediate_size
    head_size = width // config.num_attention_heads
    kv_width = head_size * (config.num_key_value_heads or config.num_attention_heads)
    layer = 2 * width * (width + kv_width) + 3 * width * wide + 2 * width
    return config.vocab_size * width + config.num_hidden_layers * layer + width


def _clip_parameters(config: ClipTextConfig) -> int:
    width = config.hidden_size
    embedded = config.vocab_size + config.max_position_embeddings
    layers = config.num_hidden_layers * _clip_layer(width, config.intermediate_size)
    return embedded * width + layers + 2 * width


def _clip_layer(width: int, wide: int) -> int:
    """Parameters of one layer of CLIP, of words or of patches."""
    return 4 * (width * width + width) + 2 * width * wide + wide + width + 4 * width
