"""Per-layer cost model of AutoencoderKLHunyuanVideo's decoder, from its configuration."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from longtake.pipelines.costs import Work
from longtake.pipelines.hunyuan_video.configs import VaeConfig

_KERNEL = 27
"""Elements of a 3 x 3 x 3 convolution kernel."""

Cells = tuple[int, int, int]


@dataclass(frozen=True)
class _Layer:
    """One layer of the decoder on one tile.

    Attributes:
        kind: "convolution" (3 x 3 x 3), "pointwise", "attention", or "upsampling" (the copies
            around its convolution, which is a separate layer).
        channels: Input and output channels.
        cells: Output frames, height and width.
    """

    kind: str
    channels: tuple[int, int]
    cells: Cells


@dataclass(frozen=True)
class AutoencoderCosts:
    """Decoding costs of one autoencoder."""

    config: VaeConfig

    def decoding(self, cells: Sequence[int], element_size: int) -> Work:
        """Work of decoding one tile of ``(f, h, w)`` latents."""
        work = Work()
        for layer in self._layers(*cells):
            work += _work_of(layer, element_size)
        return work

    def peak_bytes(self, cells: Sequence[int], element_size: int) -> int:
        """Peak activation memory of decoding one tile, in bytes.

        The peak is in the last block's first convolutions, or in the attention's scores and mask,
        which grow with the square of the number of cells.
        """
        channels = self.config.block_out_channels
        before, last = channels[min(1, len(channels) - 1)], channels[0]
        *_, out = self._layers(*cells)
        frames, height, width = out.cells
        padded = (frames + 2) * (height + 2) * (width + 2)
        peak: float = math.prod(out.cells) * (2.8 * before + 1.2 * last) + padded * before
        if self.config.mid_block_add_attention:
            peak = max(peak, 3.0 * math.prod(cells) ** 2)
        return int(peak * element_size)

    def _layers(self, frames: int, height: int, width: int) -> Iterator[_Layer]:
        config, cells = self.config, (frames, height, width)
        last = config.block_out_channels[-1]
        yield _Layer("pointwise", (config.latent_channels, config.latent_channels), cells)
        yield _Layer("convolution", (config.latent_channels, last), cells)
        for _ in range(2):
            yield from _residual_layers(last, last, cells)
        if config.mid_block_add_attention:
            yield _Layer("attention", (last, last), cells)
        before = last
        for place, channels in enumerate(reversed(config.block_out_channels)):
            yield from _residual_layers(before, channels, cells)
            for _ in range(config.layers_per_block):
                yield from _residual_layers(channels, channels, cells)
            in_time, in_space = config.scales(place)
            if (in_time, in_space) != (1, 1):
                frames, height, width = cells
                cells = (in_time * (frames - 1) + 1, in_space * height, in_space * width)
                yield _Layer("upsampling", (channels, channels), cells)
                yield _Layer("convolution", (channels, channels), cells)
            before = channels
        yield _Layer("convolution", (before, config.out_channels), cells)


def _residual_layers(before: int, channels: int, cells: Cells) -> Iterator[_Layer]:
    yield _Layer("convolution", (before, channels), cells)
    yield _Layer("convolution", (channels, channels), cells)
    if before != channels:
        yield _Layer("pointwise", (before, channels), cells)


def _work_of(layer: _Layer, element_size: int) -> Work:
    (before, channels), size = layer.channels, math.prod(layer.cells)
    if layer.kind == "attention":
        linear, scores = 2 * 4 * channels * channels * size, 4 * channels * size * size
        moved = (14 * channels * size + 3 * size * size) * element_size
        return Work(linear_flops=linear, attention_flops=scores, memory_bytes=moved, launches=20)
    if layer.kind == "upsampling":
        return Work(memory_bytes=3.5 * channels * size * element_size, launches=4)
    if layer.kind == "pointwise":
        return Work(convolution_flops=2 * before * channels * size, launches=1)
    # A norm, an activation and padding precede each convolution; a residual sum follows every
    # second one.
    values = 6.3 * before + 1.5 * channels
    return Work(
        convolution_flops=2 * _KERNEL * before * channels * size,
        memory_bytes=values * size * element_size,
        launches=5,
    )
