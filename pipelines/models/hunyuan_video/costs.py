"""Cost model of HunyuanVideo, from its configuration files alone.

Floating-point operations and parameter counts are exact. Memory traffic and peak memory are
in units of one activation, s x D x e bytes (tokens x model width x element size), as measured in
the blocks' forward passes with a torch dispatch mode. test_costs.py checks both against the code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from longtake.configs.request import ResolvedDecode
from longtake.pipelines.chunks import TOKENS_PER_CHUNK, chunks_of, largest_chunk
from longtake.pipelines.codec.causal_tiling import CausalTiling
from longtake.pipelines.codec.tiles import Spans
from longtake.pipelines.costs import AttentionHeads, ModelCosts, Work
from longtake.pipelines.loading.tensor_shapes import Shape, matrices, num_values, shapes_of
from longtake.pipelines.models.hunyuan_video.codec.costs import AutoencoderCosts
from longtake.pipelines.models.hunyuan_video.configs import TransformerConfig, VaeConfig
from longtake.pipelines.models.hunyuan_video.tensors import (
    REFINER_RATIO,
    double_block_tensors,
    single_block_tensors,
    transformer_tensors,
    vae_tensors,
)
from longtake.pipelines.text_encoders.configs import ClipTextConfig, LlamaConfig, LlavaConfig
from longtake.pipelines.text_encoders.tensors import (
    clip_tensors,
    llama_tensors,
    llava_tensors,
    num_streaming_values,
    vision_tensors,
)

_TEMPLATE_TOKENS = 95
"""Tokens of diffusers' prompt template before the prompt: encoded, then cropped."""


@dataclass(frozen=True)
class HunyuanVideoCosts(ModelCosts):
    """Costs of one checkpoint.

    Attributes:
        transformer: Configuration of the transformer.
        vae: Configuration of the autoencoder.
        text_encoder: Configuration of LLaMA, or of LLaVA.
        clip: Configuration of CLIP's text encoder.
        tokens_per_chunk: Largest number of tokens that what widens them treats at once.
    """

    transformer: TransformerConfig
    vae: VaeConfig
    text_encoder: LlamaConfig | LlavaConfig
    clip: ClipTextConfig
    tokens_per_chunk: int = TOKENS_PER_CHUNK

    @property
    def llama(self) -> LlamaConfig:
        """Configuration of the LLaMA text encoder, or of LLaVA's language model."""
        encoder = self.text_encoder
        return encoder.text_config if isinstance(encoder, LlavaConfig) else encoder

    @property
    def attention(self) -> AttentionHeads:  # type: ignore[override]
        """One attention per block, with as many KV heads as query heads."""
        config = self.transformer
        return AttentionHeads(
            config.num_layers + config.num_single_layers,
            config.num_attention_heads,
            config.num_attention_heads,
            config.attention_head_dim,
        )

    @property
    def token_values(self) -> int:  # type: ignore[override]
        """Latent channels times the patch volume."""
        return self.transformer.token_values

    @cached_property
    def transformer_shapes(self) -> Sequence[Shape]:
        """Shapes of the transformer's tensors, in the order of :func:`transformer_tensors`."""
        return shapes_of(transformer_tensors(self.transformer))

    @property
    def linear_shapes(self) -> Sequence[Shape]:
        """Shapes of the weights of all blocks' linear layers."""
        config = self.transformer
        double = matrices(double_block_tensors("", config))
        single = matrices(single_block_tensors("", config))
        return config.num_layers * double + config.num_single_layers * single

    @property
    def block_linear_shapes(self) -> Sequence[Shape]:
        """Those of a double-stream block, which is the largest, or of a single-stream block."""
        config = self.transformer
        block_tensors = double_block_tensors if config.num_layers else single_block_tensors
        return matrices(block_tensors("", config))

    @property
    def block_parameters(self) -> int:
        """Parameters of the largest block."""
        blocks = []
        if self.transformer.num_layers:
            blocks.append(self._double_block)
        if self.transformer.num_single_layers:
            blocks.append(self._single_block)
        return max(blocks, default=0)

    @property
    def non_block_parameters(self) -> int:
        """Parameters of the embedders, the refiner and the output layers."""
        config = self.transformer
        blocks = config.num_layers * self._double_block
        blocks += config.num_single_layers * self._single_block
        return self.transformer_parameters - blocks

    @cached_property
    def other_parameters(self) -> Mapping[str, int]:
        """Parameters of the autoencoder (encoder and decoder) and of the text encoders."""
        return {
            "autoencoder": num_values(vae_tensors(self.vae)),
            "text_encoders": self._llama_parameters
            + self._clip_parameters
            + self._vision_parameters,
        }

    @cached_property
    def text_streaming_parameters(self) -> int:
        """Parameters on the device at a time while prompts are encoded layer by layer: LLaMA's or
        LLaVA's, and CLIP's."""
        clip = num_streaming_values(clip_tensors(self.clip))
        if isinstance(self.text_encoder, LlavaConfig):
            return num_streaming_values(llava_tensors(self.text_encoder)) + clip
        return num_streaming_values(llama_tensors(self.llama)) + clip

    def transformer_pass(self, num_tokens: int, num_text_tokens: int, element_size: int) -> Work:
        """Work of one forward pass: blocks on the local tokens, and the embedders, refiner and
        modulation, which every rank computes."""
        config, width = self.transformer, self.transformer.width
        num_blocks = config.num_layers + config.num_single_layers
        mlp = config.mlp_width
        per_token = 2 * num_blocks * (4 * width * width + 2 * width * mlp)
        per_token += 2 * width * (config.values_in + config.token_values)  # in, and out
        once = self.transformer_parameters - self._streamed_parameters  # embeddings, modulation
        refined = config.num_refiner_layers * (4 + 2 * REFINER_RATIO) * width * width
        per_text_token = 2 * (config.text_embed_dim * width + refined)
        attention = 4 * config.num_refiner_layers * num_text_tokens**2 * width
        unit = num_tokens * width * element_size
        chunks = len(chunks_of(num_tokens, self.tokens_per_chunk))
        launches = (60 + 28 * chunks) * config.num_layers
        launches += (16 + 30 * chunks) * config.num_single_layers
        return Work(
            linear_flops=per_token * num_tokens + per_text_token * num_text_tokens + 2 * once,
            attention_flops=attention,
            memory_bytes=unit * (self._block_traffic(element_size) + 11) + once * element_size,
            launches=100 + launches,
        )

    def _block_traffic(self, element_size: int) -> float:
        """Traffic of all blocks, in units."""
        config, wide = self.transformer, element_size >= 4
        each = 34.5 if wide else 46.5
        each += (14 if wide else 34.5) if config.qk_norm else 0
        double, single = each + 2 * config.mlp_ratio, each + 3 + 4 * config.mlp_ratio
        if self._replaces_tokens:
            double, single = double + 8, single + 4
        return config.num_layers * double + config.num_single_layers * single

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

        The peak is in a single-stream block: in its attention, in a chunk of its feed-forward, or,
        with a first frame of its own modulation, when the two are joined again. The latent tokens,
        their velocity and their rotary embedding add to it.
        """
        config, wide = self.transformer, element_size >= 4
        if ring:
            attention = 6 + ((8 if wide else 9) + ulysses) * head_share
        elif ulysses:
            attention = 6 + 6 * head_share
        else:
            attention = 7
        share = largest_chunk(num_tokens, self.tokens_per_chunk) / max(1, num_tokens)
        feed_forward = 6 + (2 * config.mlp_ratio + 1) * share
        units = max(feed_forward, attention, 9 if self._replaces_tokens else 0)
        tokens = (4 + element_size) * config.token_values + 4 * config.attention_head_dim
        return int(num_tokens * (units * config.width * element_size + tokens))

    def text_encoding(self, max_tokens: int, element_size: int) -> Work:
        """Work of encoding one prompt: LLaMA at the maximum length of template and prompt, and CLIP
        at its own. LLaVA adds the vision tower and the picture's patches."""
        llama = self._llama_parameters - self.llama.vocab_size * self.llama.hidden_size
        clip = self._clip_parameters - self.clip.vocab_size * self.clip.hidden_size
        patches = self._num_patches
        num_tokens = max_tokens + _TEMPLATE_TOKENS + patches
        flops = 2 * (llama * num_tokens + clip * self.clip.max_position_embeddings)
        flops += 2 * self._vision_parameters * patches
        layers = self.llama.num_hidden_layers + self.clip.num_hidden_layers
        read = element_size * (llama + clip + self._vision_parameters)
        return Work(linear_flops=flops, memory_bytes=read, launches=25 * layers)

    def decode_spans(self, latents_shape: Sequence[int], request: ResolvedDecode) -> Spans:
        """Tile spans identical to diffusers'."""
        vae = self.vae
        tiling = CausalTiling(
            request, vae.temporal_compression_ratio, vae.spatial_compression_ratio, decodes=True
        )
        return tiling.spans(latents_shape)

    def tile_decoding(self, shape: Sequence[int], element_size: int) -> Work:
        """Work of decoding one tile; see :class:`AutoencoderCosts`."""
        return AutoencoderCosts(self.vae).decoding(shape, element_size)

    def tile_bytes(self, shape: Sequence[int], element_size: int) -> int:
        """Peak memory of decoding one tile, in bytes; see :class:`AutoencoderCosts`."""
        return AutoencoderCosts(self.vae).peak_bytes(shape, element_size)

    @property
    def _replaces_tokens(self) -> bool:
        """Whether the tokens of the first frame have a modulation of their own."""
        return self.transformer.image_condition_type == "token_replace"

    @property
    def _num_patches(self) -> int:
        encoder = self.text_encoder
        return encoder.num_patches if isinstance(encoder, LlavaConfig) else 0

    @cached_property
    def _llama_parameters(self) -> int:
        return num_values(llama_tensors(self.llama))

    @cached_property
    def _clip_parameters(self) -> int:
        return num_values(clip_tensors(self.clip))

    @cached_property
    def _vision_parameters(self) -> int:
        """Parameters of LLaVA's vision tower and its two-layer projector."""
        if not isinstance(self.text_encoder, LlavaConfig):
            return 0
        return num_values(vision_tensors(self.text_encoder))

    @cached_property
    def _double_block(self) -> int:
        """Parameters of a double-stream block."""
        return num_values(double_block_tensors("", self.transformer))

    @cached_property
    def _single_block(self) -> int:
        """Parameters of a single-stream block."""
        return num_values(single_block_tensors("", self.transformer))

    @property
    def _streamed_parameters(self) -> int:
        """Parameters applied to every token: blocks, refiner, input and output projections."""
        config, width = self.transformer, self.transformer.width
        mlp = config.mlp_width
        block = 4 * width * width + 2 * width * mlp
        refiner = (4 + 2 * REFINER_RATIO) * width * width * config.num_refiner_layers
        streams = 2 * config.num_layers + config.num_single_layers
        return (
            streams * block
            + refiner
            + config.text_embed_dim * width
            + width * (config.values_in + config.token_values)
        )
