"""Cost model of AutoencoderKLWan, from its configuration alone.

Floating-point operations are exact. Memory traffic and peak memory follow the tensors that the
modules make; tests compare both with what torch counts.

The decoder takes one latent frame at a time, the encoder the frames of one: a chunk. ``t`` is the
number of frames of a chunk in one layer; the first chunk has one frame everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from longtake.pipelines.costs import Work
from longtake.pipelines.models.wan.codec.config import VaeConfig
from longtake.pipelines.models.wan.codec.layers import Layer, decoder_layers, encoder_layers


@dataclass(frozen=True)
class AutoencoderCosts:
    """Costs of one autoencoder."""

    config: VaeConfig

    def decoding(self, shape: Sequence[int], element_size: int) -> Work:
        """Work of decoding one tile of ``(f, h, w)`` latents."""
        return _work(decoder_layers(self.config), shape, element_size)

    def encoding(self, shape: Sequence[int], element_size: int) -> Work:
        """Work of encoding one tile to ``(f, h, w)`` latents."""
        return _work(encoder_layers(self.config), shape, element_size)

    def peak_bytes(self, shape: Sequence[int], element_size: int) -> int:
        """Peak activation memory of decoding one tile of ``(f, h, w)`` latents, in bytes.

        The peak is in a residual block or an upsampling of the last chunk. Latents, feature cache
        and decoded frames add to it.
        """
        config, (frames, rows, columns) = self.config, shape
        latents = config.z_dim * math.prod(shape) * (4 + 2 * element_size)
        full = rows * columns * (config.scale_factor_spatial // config.patch) ** 2
        decoded = config.out_channels * max(0, 4 * frames - 7) * full
        held = _cached_values(decoder_layers(config), shape) + decoded
        peak = max(self._decoder_values(shape, wide=element_size >= 4))
        return latents + (held + peak) * element_size

    def encoding_peak_bytes(self, shape: Sequence[int], element_size: int) -> int:
        """Peak activation memory of encoding one tile to ``(f, h, w)`` latents, in bytes.

        The peak is in a residual block of the last chunk. Pixels and feature cache add to it.
        """
        config, (frames, rows, columns) = self.config, shape
        full = rows * columns * (config.scale_factor_spatial // config.patch) ** 2
        copied = element_size < 4 or config.patch > 1  # to the autoencoder's dtype, or patchified
        size = 4 + (element_size if copied else 0)
        pixels = config.in_channels * (4 * frames - 3) * full * size
        held = _cached_values(encoder_layers(config), shape)
        peak = max(self._encoder_values(frames, full, wide=element_size >= 4))
        return pixels + (held + peak) * element_size

    def _encoder_values(self, frames: int, area: int, *, wide: bool) -> Iterator[int]:
        """Values that are alive at once in each residual block of the encoder, beside the cache.

        Args:
            frames: Latent frames.
            area: Rows times columns of the patchified pixels.
            wide: As in :meth:`_decoder_values`.
        """
        config, first = self.config, frames == 1
        t: int = 1 if first else config.scale_factor_temporal
        for block in config.encoder_blocks:
            held = 2 * block.channels_in * t if config.is_residual else 0  # its input, and a copy
            widths = [block.channels_in, *[block.channels] * config.num_res_blocks]
            for channels_in, channels in zip(widths, widths[1:], strict=False):
                residual = _residual_values(channels_in, channels, t, first, wide)
                yield area * (held + channels_in * t + residual)
            t //= 1 if first else block.in_time
            area //= block.in_space**2

    def _decoder_values(self, latents: Sequence[int], *, wide: bool) -> Iterator[int]:
        """Values that are alive at once in each part of the decoder's blocks, beside the cache.

        Args:
            latents: Frames, rows and columns of the tile.
            wide: Whether elements have 4 bytes; norms and upsamplings of narrower ones compute in
                float32.
        """
        frames, rows, columns = latents
        config, t, area = self.config, 1, rows * columns
        channels_in = config.decoder_blocks[0].channels_in
        for block in config.decoder_blocks:
            width = block.channels
            held = channels_in * t * (2 if config.is_residual else 1)  # its input, and a copy
            first = t == 1 and frames == 1
            yield area * (held + _residual_values(channels_in, width, t, first, wide))
            yield area * (held + width * t + _residual_values(width, width, t, first, wide))
            channels_in = width
            if block.in_space > 1:
                held += width * t
                t *= 1 if first else block.in_time
                channels_in = width if config.is_residual else width // 2
                yield area * (held + _upsampling_values(width, channels_in, t, wide))
                if config.is_residual:  # the sum, and what is summed
                    yield area * (held + 12 * width * t)
                area *= block.in_space**2


def _cached_values(layers: Iterable[Layer], latents: Sequence[int]) -> int:
    """Values in the feature cache: the last two input frames of each causal convolution."""
    frames, values = latents[0], 0
    for layer in layers:
        if layer.kind == "causal" and (frames > 1 or layer.first):
            _, rows, columns = layer.shape(latents)
            values += layer.channels[0] * min(frames, 2) * rows * columns
    return values


def _residual_values(channels_in: int, channels: int, t: int, first: bool, wide: bool) -> int:
    """Values alive beside the input of a residual block, per row and column.

    Args:
        channels_in: Channels of its input.
        channels: Channels of its output.
        t: Frames of a chunk.
        first: Whether this is the first chunk, without a cache to put before the frames.
        wide: Whether norms do not convert.
    """
    shortcut = channels * t if channels_in != channels else 0
    padded = 2 * t + 2 if first else 3 * t + 6
    entering = channels_in * max(padded, 0 if wide else 4 * t)
    leaving = channels * max(padded, 0 if wide else 5 * t)
    return shortcut + max(entering, leaving)


def _upsampling_values(channels_in: int, channels: int, t: int, wide: bool) -> int:
    """Values alive beside the input of an upsampling, per row and column of that input."""
    convolved = 5 * channels_in * t + 4 * channels * t
    return convolved if wide else max(convolved, 13 * channels_in * t)


def _work(layers: Iterable[Layer], shape: Sequence[int], element_size: int) -> Work:
    work = Work()
    for layer in layers:
        work += _work_of(layer, shape, element_size)
    return work


def _work_of(layer: Layer, latents: Sequence[int], element_size: int) -> Work:
    """Work of one layer and of what surrounds it: the activation after a norm, the residual sum
    after a convolution, and its input's copies, behind the cache and padded."""
    (channels_in, channels), (frames, rows, columns) = layer.channels, layer.shape(latents)
    chunks, area, wide = latents[0], rows * columns, element_size >= 4
    unit = area * element_size
    if layer.kind == "attention":
        return Work(
            attention_flops=4 * channels * frames * area**2,
            memory_bytes=11 * channels * frames * unit,
            launches=9 * chunks,
        )
    if layer.kind == "norm":
        moved = (11 if wide else 20) * channels * frames * unit
        return Work(memory_bytes=moved, launches=(7 if wide else 9) * chunks)
    if layer.kind == "shortcut":
        moved = (2 * channels_in + 7 * channels) * frames * unit
        return Work(memory_bytes=moved, launches=5 * chunks)
    flops = 2 * channels_in * channels * math.prod(layer.kernel) * frames * area
    if layer.kind == "causal":
        t, padding = layer.in_time, (rows + 2) * (columns + 2) / area
        copied = (3 + padding) * (t + 2) + (6 if t == 1 else 4)
        first = 3 + 3 * padding
        values = channels_in * (copied * (chunks - 1) + first) + 1.5 * channels * frames
        return Work(convolution_flops=flops, memory_bytes=values * unit, launches=4 * chunks)
    copied = {"upsampling": 3.25 if wide else 5.0, "downsampling": 16.0}.get(layer.kind, 0.0)
    values = copied * channels_in * frames
    return Work(convolution_flops=flops, memory_bytes=values * unit, launches=3 * chunks)
