"""Per-layer cost model of AutoencoderKLHunyuanVideo's decoder, from its configuration."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from longtake.pipelines.costs import Work
from longtake.pipelines.models.hunyuan_video.configs import VaeConfig

_KERNEL = 27
"""Elements of a 3 x 3 x 3 convolution kernel."""

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class _Layer:
    """One layer of the decoder on one tile.

    Attributes:
        kind: "convolution" (3 x 3 x 3), "pointwise", "attention", or "upsampling" (the copies
            around its convolution, which is a separate layer).
        channels: Input and output channels.
        shape: Output frames, height and width.
    """

    kind: str
    channels: tuple[int, int]
    shape: Shape


@dataclass(frozen=True)
class AutoencoderCosts:
    """Decoding costs of one autoencoder."""

    config: VaeConfig

    def decoding(self, shape: Sequence[int], element_size: int) -> Work:
        """Work of decoding one tile of ``(f, h, w)`` latents."""
        work = Work()
        for layer in self._layers(*shape):
            work += _work_of(layer, element_size)
        return work

    def peak_bytes(self, shape: Sequence[int], element_size: int) -> int:
        """Peak activation memory of decoding one tile, in bytes.

        The peak is in the last block's first convolutions, or in the attention's scores and mask,
        which grow with the square of the number of latents.
        """
        channels = self.config.block_out_channels
        channels_in, last = channels[min(1, len(channels) - 1)], channels[0]
        *_, out = self._layers(*shape)
        frames, height, width = out.shape
        padded = (frames + 2) * (height + 2) * (width + 2)
        peak: float = math.prod(out.shape) * (2.8 * channels_in + 1.2 * last) + padded * channels_in
        if self.config.mid_block_add_attention:
            peak = max(peak, 3.0 * math.prod(shape) ** 2)
        return int(peak * element_size)

    def _layers(self, frames: int, height: int, width: int) -> Iterator[_Layer]:
        config, shape = self.config, (frames, height, width)
        last = config.block_out_channels[-1]
        yield _Layer("pointwise", (config.latent_channels, config.latent_channels), shape)
        yield _Layer("convolution", (config.latent_channels, last), shape)
        for _ in range(2):
            yield from _residual_layers(last, last, shape)
        if config.mid_block_add_attention:
            yield _Layer("attention", (last, last), shape)
        channels_in = last
        for index, channels in enumerate(reversed(config.block_out_channels)):
            yield from _residual_layers(channels_in, channels, shape)
            for _ in range(config.layers_per_block):
                yield from _residual_layers(channels, channels, shape)
            in_time, in_space = config.scale_factors(index)
            if (in_time, in_space) != (1, 1):
                frames, height, width = shape
                shape = (in_time * (frames - 1) + 1, in_space * height, in_space * width)
                yield _Layer("upsampling", (channels, channels), shape)
                yield _Layer("convolution", (channels, channels), shape)
            channels_in = channels
        yield _Layer("convolution", (channels_in, config.out_channels), shape)


def _residual_layers(channels_in: int, channels: int, shape: Shape) -> Iterator[_Layer]:
    yield _Layer("convolution", (channels_in, channels), shape)
    yield _Layer("convolution", (channels, channels), shape)
    if channels_in != channels:
        yield _Layer("pointwise", (channels_in, channels), shape)


def _work_of(layer: _Layer, element_size: int) -> Work:
    (channels_in, channels), size = layer.channels, math.prod(layer.shape)
    if layer.kind == "attention":
        linear, scores = 2 * 4 * channels * channels * size, 4 * channels * size * size
        moved = (14 * channels * size + 3 * size * size) * element_size
        return Work(linear_flops=linear, attention_flops=scores, memory_bytes=moved, launches=20)
    if layer.kind == "upsampling":
        return Work(memory_bytes=3.5 * channels * size * element_size, launches=4)
    if layer.kind == "pointwise":
        return Work(convolution_flops=2 * channels_in * channels * size, launches=1)
    # A norm, an activation and padding precede each convolution; a residual sum follows every
    # second one.
    values = 6.3 * channels_in + 1.5 * channels
    return Work(
        convolution_flops=2 * _KERNEL * channels_in * channels * size,
        memory_bytes=values * size * element_size,
        launches=5,
    )
