"""Names and shapes of HunyuanVideo's weight tensors, from its configuration alone.

They are generated lazily, so that memory does not grow with the configured number of layers.
"""

from __future__ import annotations

from longtake.pipelines.loading.tensor_shapes import NamedShapes, convolution, linear, norm
from longtake.pipelines.models.hunyuan_video.configs import TransformerConfig, VaeConfig

REFINER_RATIO = 4
"""Feed-forward expansion of the token refiner, fixed in diffusers."""

_FREQUENCIES = 256
"""Size of the sinusoidal embedding of a timestep or a guidance scale."""

_PROJECTIONS = ("to_q", "to_k", "to_v")


def transformer_tensors(config: TransformerConfig) -> NamedShapes:
    """Tensors of HunyuanVideoTransformer3DModel."""
    width, text, patch = config.width, config.text_embed_dim, config.patch_size
    yield (
        "x_embedder.proj.weight",
        (width, config.in_channels, config.patch_size_t, patch, patch),
    )
    yield "x_embedder.proj.bias", (width,)
    refined = {"timestep": _FREQUENCIES, "text": text}
    yield from _embedders("context_embedder.time_text_embed.", width, refined)
    yield from linear("context_embedder.proj_in", text, width)
    for index in range(config.num_refiner_layers):
        yield from _refiner_block(f"context_embedder.token_refiner.refiner_blocks.{index}.", width)
    embedded = {"timestep": _FREQUENCIES, "text": config.pooled_projection_dim}
    if config.guidance_embeds:
        embedded["guidance"] = _FREQUENCIES
    yield from _embedders("time_text_embed.", width, embedded)
    for index in range(config.num_layers):
        yield from double_block_tensors(f"transformer_blocks.{index}.", config)
    for index in range(config.num_single_layers):
        yield from single_block_tensors(f"single_transformer_blocks.{index}.", config)
    yield from linear("norm_out.linear", width, 2 * width)
    out = config.out_channels or config.in_channels
    yield from linear("proj_out", width, config.patch_size_t * patch**2 * out)


def vae_tensors(config: VaeConfig) -> NamedShapes:
    """Tensors of AutoencoderKLHunyuanVideo."""
    latents, channels = config.latent_channels, config.block_out_channels
    yield from convolution("quant_conv", 2 * latents, 2 * latents, 1)
    yield from convolution("post_quant_conv", latents, latents, 1)
    for part, first, order, out in (
        ("encoder", config.in_channels, channels, 2 * latents),
        ("decoder", latents, channels[::-1], config.out_channels),
    ):
        encodes = part == "encoder"
        channels_in = order[0]
        yield from convolution(f"{part}.conv_in.conv", first, channels_in, 3)
        yield from _mid_block(f"{part}.mid_block.", channels[-1], config.mid_block_add_attention)
        for index, width in enumerate(order):
            block = f"{part}.{'down' if encodes else 'up'}_blocks.{index}."
            for layer in range(config.layers_per_block + (not encodes)):
                yield from _residual(f"{block}resnets.{layer}.", channels_in, width)
                channels_in = width
            if config.scale_factors(index) != (1, 1):
                scaling = "downsamplers" if encodes else "upsamplers"
                yield from convolution(f"{block}{scaling}.0.conv.conv", width, width, 3)
        yield from norm(f"{part}.conv_norm_out", channels_in)
        yield from convolution(f"{part}.conv_out.conv", channels_in, out, 3)


def _embedders(start: str, width: int, sizes: dict[str, int]) -> NamedShapes:
    for name, size in sizes.items():
        yield from linear(f"{start}{name}_embedder.linear_1", size, width)
        yield from linear(f"{start}{name}_embedder.linear_2", width, width)


def _refiner_block(start: str, width: int) -> NamedShapes:
    wide = REFINER_RATIO * width
    yield from norm(f"{start}norm1", width)
    yield from norm(f"{start}norm2", width)
    for name in ("to_q", "to_k", "to_v", "to_out.0"):
        yield from linear(f"{start}attn.{name}", width, width)
    yield from linear(f"{start}ff.net.0.proj", width, wide)
    yield from linear(f"{start}ff.net.2", wide, width)
    yield from linear(f"{start}norm_out.linear", width, 2 * width)


def double_block_tensors(start: str, config: TransformerConfig) -> NamedShapes:
    """Tensors of a double-stream block.

    Args:
        start: Prefix of the tensor names, with its trailing dot.
    """
    width = config.width
    for name in ("norm1", "norm1_context"):
        yield from linear(f"{start}{name}.linear", width, 6 * width)
    for name in (*_PROJECTIONS, "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"):
        yield from linear(f"{start}attn.{name}", width, width)
    yield from _head_norms(
        f"{start}attn.", config, ("norm_q", "norm_k", "norm_added_q", "norm_added_k")
    )
    for name in ("ff", "ff_context"):
        yield from linear(f"{start}{name}.net.0.proj", width, config.mlp_width)
        yield from linear(f"{start}{name}.net.2", config.mlp_width, width)


def single_block_tensors(start: str, config: TransformerConfig) -> NamedShapes:
    """Tensors of a single-stream block."""
    width, wide = config.width, config.mlp_width
    for name in _PROJECTIONS:
        yield from linear(f"{start}attn.{name}", width, width)
    yield from _head_norms(f"{start}attn.", config, ("norm_q", "norm_k"))
    yield from linear(f"{start}norm.linear", width, 3 * width)
    yield from linear(f"{start}proj_mlp", width, wide)
    yield from linear(f"{start}proj_out", width + wide, width)


def _head_norms(start: str, config: TransformerConfig, names: tuple[str, ...]) -> NamedShapes:
    if config.qk_norm is not None:
        for name in names:
            yield f"{start}{name}.weight", (config.attention_head_dim,)


def _mid_block(start: str, width: int, attends: bool) -> NamedShapes:
    for index in (0, 1):
        yield from _residual(f"{start}resnets.{index}.", width, width)
    if attends:
        yield from norm(f"{start}attentions.0.group_norm", width)
        for name in (*_PROJECTIONS, "to_out.0"):
            yield from linear(f"{start}attentions.0.{name}", width, width)


def _residual(start: str, channels_in: int, width: int) -> NamedShapes:
    yield from norm(f"{start}norm1", channels_in)
    yield from convolution(f"{start}conv1.conv", channels_in, width, 3)
    yield from norm(f"{start}norm2", width)
    yield from convolution(f"{start}conv2.conv", width, width, 3)
    if channels_in != width:
        yield from convolution(f"{start}conv_shortcut.conv", channels_in, width, 1)
