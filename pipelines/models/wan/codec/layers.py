"""The layers of AutoencoderKLWan, in execution order, from its configuration alone.

They are generated lazily, so that memory does not grow with the configured number of layers.
Tensors and costs are both derived from them.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from longtake.pipelines.models.wan.codec.config import Block, VaeConfig

Kind = Literal[
    "causal", "convolution", "upsampling", "downsampling", "norm", "attention", "shortcut"
]


@dataclass(frozen=True)
class Layer:
    """One layer of the encoder or the decoder.

    Attributes:
        kind: ``causal``, a convolution that remembers its last two input frames; ``convolution``,
            one that does not; ``upsampling`` or ``downsampling``, one of single frames that
            resamples them; ``norm``; ``attention`` of each frame, without its projections; or
            ``shortcut``, an average or repetition of values beside residual blocks.
        name: Prefix of its tensors' names; empty for a layer without tensors.
        channels: Input and output channels.
        kernel: Size of the kernel; two values for a convolution of single frames. Of a norm, the
            trailing dimensions of its scale.
        in_time: Output frames per latent frame after the first.
        in_space: Output rows and columns per row and column of latents.
        first: Output frames of the first latent frame.
    """

    kind: Kind
    name: str
    channels: tuple[int, int]
    kernel: tuple[int, ...]
    in_time: int
    in_space: int
    first: int = 1

    def shape(self, latents: Sequence[int]) -> tuple[int, int, int]:
        """Output frames, rows and columns for ``(F, H, W)`` latents."""
        frames, rows, columns = latents
        count = self.first + self.in_time * (frames - 1)
        return count, rows * self.in_space, columns * self.in_space


@dataclass(frozen=True)
class _Scale:
    """Frames, and rows and columns, per latent."""

    in_time: int
    in_space: int

    def causal(self, name: str, channels_in: int, channels: int) -> Layer:
        return self._layer("causal", name, (channels_in, channels), (3, 3, 3))

    def pointwise(self, name: str, channels_in: int, channels: int) -> Layer:
        return self._layer("convolution", name, (channels_in, channels), (1, 1, 1))

    def projection(self, name: str, channels_in: int, channels: int) -> Layer:
        """A pointwise convolution of single frames."""
        return self._layer("convolution", name, (channels_in, channels), (1, 1))

    def downsampling(self, name: str, channels: int) -> Layer:
        return self._layer("downsampling", name, (channels, channels), (3, 3))

    def upsampling(self, name: str, channels_in: int, channels: int) -> Layer:
        return self._layer("upsampling", name, (channels_in, channels), (3, 3))

    def time_convolution(self, name: str, channels_in: int, channels: int) -> Layer:
        """A convolution along time that resamples, and passes the first frame by."""
        scale = self.in_time, self.in_space
        return Layer("causal", name, (channels_in, channels), (3, 1, 1), *scale, first=0)

    def norm(self, name: str, channels: int, *, planar: bool = False) -> Layer:
        return self._layer("norm", name, (channels, channels), (1, 1) if planar else (1, 1, 1))

    def attention(self, channels: int) -> Layer:
        return self._layer("attention", "", (channels, channels), ())

    def shortcut(self, channels_in: int, channels: int) -> Layer:
        return self._layer("shortcut", "", (channels_in, channels), ())

    def _layer(
        self, kind: Kind, name: str, channels: tuple[int, int], kernel: tuple[int, ...]
    ) -> Layer:
        return Layer(kind, name, channels, kernel, self.in_time, self.in_space)


def encoder_layers(config: VaeConfig) -> Iterator[Layer]:
    """Layers from patchified pixels to latent moments."""
    blocks = config.encoder_blocks
    moments, number = 2 * config.z_dim, 0
    scale = _Scale(config.scale_factor_temporal, 2 ** (len(blocks) - 1))
    yield scale.causal("encoder.conv_in", config.in_channels, blocks[0].channels_in)
    for index, block in enumerate(blocks):
        channels_in = block.channels_in
        for residual in range(config.num_res_blocks):
            start = f"encoder.down_blocks.{number + residual}."
            if config.is_residual:
                start = f"encoder.down_blocks.{index}.resnets.{residual}."
            yield from _residual(scale, start, channels_in, block.channels)
            channels_in = block.channels
        number += config.num_res_blocks
        if block.in_space > 1:
            start = f"encoder.down_blocks.{number}."
            if config.is_residual:
                start = f"encoder.down_blocks.{index}.downsampler."
            scale = yield from _downsampling(scale, start, block)
            number += 1
        if config.is_residual:
            yield scale.shortcut(block.channels_in, block.channels)
    width = blocks[-1].channels
    yield from _middle(scale, "encoder.mid_block.", width)
    yield scale.norm("encoder.norm_out", width)
    yield scale.causal("encoder.conv_out", width, moments)
    yield scale.pointwise("quant_conv", moments, moments)


def decoder_layers(config: VaeConfig) -> Iterator[Layer]:
    """Layers from latents to patchified pixels."""
    blocks, scale = config.decoder_blocks, _Scale(1, 1)
    yield scale.pointwise("post_quant_conv", config.z_dim, config.z_dim)
    channels_in = blocks[0].channels_in
    yield scale.causal("decoder.conv_in", config.z_dim, channels_in)
    yield from _middle(scale, "decoder.mid_block.", channels_in)
    for index, block in enumerate(blocks):
        start = f"decoder.up_blocks.{index}."
        for residual in range(config.num_res_blocks + 1):
            yield from _residual(scale, f"{start}resnets.{residual}.", channels_in, block.channels)
            channels_in = block.channels
        if block.in_space > 1:
            if not config.is_residual:
                channels_in = block.channels // 2
            start += "upsampler." if config.is_residual else "upsamplers.0."
            scale = yield from _upsampling(scale, start, block, channels_in)
            if config.is_residual:
                yield scale.shortcut(block.channels_in, block.channels)
    yield scale.norm("decoder.norm_out", channels_in)
    yield scale.causal("decoder.conv_out", channels_in, config.out_channels)


def _residual(scale: _Scale, start: str, channels_in: int, channels: int) -> Iterator[Layer]:
    if channels_in != channels:
        yield scale.pointwise(f"{start}conv_shortcut", channels_in, channels)
    yield scale.norm(f"{start}norm1", channels_in)
    yield scale.causal(f"{start}conv1", channels_in, channels)
    yield scale.norm(f"{start}norm2", channels)
    yield scale.causal(f"{start}conv2", channels, channels)


def _middle(scale: _Scale, start: str, width: int) -> Iterator[Layer]:
    yield from _residual(scale, f"{start}resnets.0.", width, width)
    yield scale.norm(f"{start}attentions.0.norm", width, planar=True)
    yield scale.projection(f"{start}attentions.0.to_qkv", width, 3 * width)
    yield scale.attention(width)
    yield scale.projection(f"{start}attentions.0.proj", width, width)
    yield from _residual(scale, f"{start}resnets.1.", width, width)


def _downsampling(scale: _Scale, start: str, block: Block) -> Generator[Layer, None, _Scale]:
    """Layers of a downsampling; returns the scale after it."""
    width = block.channels
    scale = _Scale(scale.in_time, scale.in_space // block.in_space)
    yield scale.downsampling(f"{start}resample.1", width)
    if block.in_time > 1:
        scale = _Scale(scale.in_time // block.in_time, scale.in_space)
        yield scale.time_convolution(f"{start}time_conv", width, width)
    return scale


def _upsampling(
    scale: _Scale, start: str, block: Block, channels: int
) -> Generator[Layer, None, _Scale]:
    """Layers of an upsampling to ``channels``; returns the scale after it."""
    width = block.channels
    if block.in_time > 1:
        yield scale.time_convolution(f"{start}time_conv", width, block.in_time * width)
    scale = _Scale(scale.in_time * block.in_time, scale.in_space * block.in_space)
    yield scale.upsampling(f"{start}resample.1", width, channels)
    return scale
