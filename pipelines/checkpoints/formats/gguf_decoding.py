"""Decodes the blocks of GGUF tensors to float32.

The arithmetic is that of ggml's ``dequantize_row_*``, in its order, so that the values are the same
bit for bit.

Legend: B blocks, b bytes of a block, V values of a block, n bytes, G groups of a block that share
a scale.

Source: https://github.com/ggml-org/ggml/blob/master/src/ggml-quants.c and ggml-common.h
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache

import torch
from torch.nn import functional

from longtake.pipelines.checkpoints.formats.gguf_types import BLOCK_TYPES

IQ4_LEVELS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""Values of the codes of IQ4_NL and IQ4_XS (``kvalues_iq4nl``)."""


def decode_blocks(blocks_Bb: torch.Tensor, name: str) -> torch.Tensor:
    """Decode blocks.

    Args:
        blocks_Bb: Blocks, uint8.
        name: Name of the block type.

    Returns:
        ``[B, V]``, float32.
    """
    return _DECODERS[name](blocks_Bb)


def decode_rows(codes_Rb: torch.Tensor, name: str) -> torch.Tensor:
    """Decode rows of a weight.

    Args:
        codes_Rb: ``[R, bytes of a row's blocks]``, uint8.
        name: Name of the block type.

    Returns:
        ``[R, C]``, float32.
    """
    blocks_Bb = codes_Rb.reshape(-1, BLOCK_TYPES[name].num_bytes)
    num_columns = codes_Rb.shape[1] // BLOCK_TYPES[name].num_bytes * BLOCK_TYPES[name].num_values
    values_RC: torch.Tensor = decode_blocks(blocks_Bb, name).view(len(codes_Rb), num_columns)
    return values_RC


def _q4_0(blocks: torch.Tensor) -> torch.Tensor:
    scale, codes = blocks.split((2, 16), 1)
    return _half(scale) * (_fields(codes, 16, 4).char() - 8)


def _q4_1(blocks: torch.Tensor) -> torch.Tensor:
    scale, least, codes = blocks.split((2, 2, 16), 1)
    return (_half(scale) * _fields(codes, 16, 4)).add_(_half(least))


def _q5_0(blocks: torch.Tensor) -> torch.Tensor:
    scale, high, low = blocks.split((2, 4, 16), 1)
    codes = _fields(low, 16, 4) | _fields(high, 1, 1) << 4
    return _half(scale) * (codes.char() - 16)


def _q5_1(blocks: torch.Tensor) -> torch.Tensor:
    scale, least, high, low = blocks.split((2, 2, 4, 16), 1)
    codes = _fields(low, 16, 4) | _fields(high, 1, 1) << 4
    return (_half(scale) * codes).add_(_half(least))


def _q8_0(blocks: torch.Tensor) -> torch.Tensor:
    scale, codes = blocks.split((2, 32), 1)
    values: torch.Tensor = _half(scale) * codes.view(torch.int8)
    return values


def _q2_k(blocks: torch.Tensor) -> torch.Tensor:
    scales, codes, scale, least = blocks.split((16, 64, 2, 2), 1)
    scale_BG, least_BG = _half(scale) * (scales & 15), _half(least) * (scales >> 4)
    return _scaled(scale_BG, _fields(codes, 32, 2), least_BG)


def _q3_k(blocks: torch.Tensor) -> torch.Tensor:
    high, low, scales, scale = blocks.split((32, 64, 12, 2), 1)
    scales_BG = _fields(scales[:, :8], 8, 4) | _fields(scales[:, 8:], 4, 2) << 4
    codes = _fields(low, 32, 2).char() - ((_fields(high, 32, 1) ^ 1) << 2).char()
    return _scaled(_half(scale) * (scales_BG.char() - 32), codes)


def _q4_k(blocks: torch.Tensor) -> torch.Tensor:
    scale, least, scales, codes = blocks.split((2, 2, 12, 128), 1)
    scale_BG, least_BG = _scales_and_minima(scales)
    return _scaled(_half(scale) * scale_BG, _fields(codes, 32, 4), _half(least) * least_BG)


def _q5_k(blocks: torch.Tensor) -> torch.Tensor:
    scale, least, scales, high, low = blocks.split((2, 2, 12, 32, 128), 1)
    scale_BG, least_BG = _scales_and_minima(scales)
    codes = _fields(low, 32, 4) | _fields(high, 32, 1) << 4
    return _scaled(_half(scale) * scale_BG, codes, _half(least) * least_BG)


def _q6_k(blocks: torch.Tensor) -> torch.Tensor:
    low, high, scales, scale = blocks.split((128, 64, 16, 2), 1)
    codes = (_fields(low, 64, 4) | _fields(high, 32, 2) << 4).char() - 32
    return _scaled(_half(scale) * scales.view(torch.int8), codes)


def _iq4_nl(blocks: torch.Tensor) -> torch.Tensor:
    scale, codes = blocks.split((2, 16), 1)
    return _half(scale) * _iq4_values(_fields(codes, 16, 4))


def _iq4_xs(blocks: torch.Tensor) -> torch.Tensor:
    scale, high, low, codes = blocks.split((2, 2, 4, 128), 1)
    scales_BG = (_fields(low, 1, 4) | _fields(high, 1, 2) << 4).char() - 32
    return _scaled(_half(scale) * scales_BG, _iq4_values(_fields(codes, 16, 4)))


_DECODERS: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    **{"Q4_0": _q4_0, "Q4_1": _q4_1, "Q5_0": _q5_0, "Q5_1": _q5_1, "Q8_0": _q8_0},
    **{"Q2_K": _q2_k, "Q3_K": _q3_k, "Q4_K": _q4_k, "Q5_K": _q5_k, "Q6_K": _q6_k},
    **{"IQ4_NL": _iq4_nl, "IQ4_XS": _iq4_xs},
}


def _half(bytes_B2: torch.Tensor) -> torch.Tensor:
    """A float16 number of each block, as float32, ``[B, 1]``."""
    return bytes_B2.contiguous().view(torch.float16).float()


def _fields(bytes_Bn: torch.Tensor, width: int, num_bits: int) -> torch.Tensor:
    """Numbers of a few bits: the lowest of ``width`` bytes, then the next of the same bytes, ...

    Returns:
        ``[B, n * 8 / num_bits]``, uint8.
    """
    shifts = torch.arange(0, 8, num_bits, dtype=torch.uint8, device=bytes_Bn.device)
    fields: torch.Tensor = bytes_Bn.unflatten(1, (-1, 1, width)) >> shifts[:, None]
    return (fields & (1 << num_bits) - 1).flatten(1)


def _scales_and_minima(bytes_B12: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The eight scales and minima of Q4_K and Q5_K, 6 bits each, ``[B, 8]``, uint8."""
    scales, minima, rest = bytes_B12.split(4, 1)
    return (
        torch.cat((scales & 63, rest & 15 | scales >> 2 & 48), 1),
        torch.cat((minima & 63, rest >> 4 | minima >> 2 & 48), 1),
    )


def _scaled(
    scale_BG: torch.Tensor, codes_BV: torch.Tensor, least_BG: torch.Tensor | None = None
) -> torch.Tensor:
    """Codes times the scale of their group, less its minimum."""
    values_BGg: torch.Tensor = scale_BG[..., None] * codes_BV.unflatten(1, (scale_BG.shape[1], -1))
    if least_BG is not None:
        values_BGg -= least_BG[..., None]
    return values_BGg.flatten(1)


def _iq4_values(codes: torch.Tensor) -> torch.Tensor:
    values: torch.Tensor = functional.embedding(codes.int(), _iq4_levels(codes.device)).squeeze(-1)
    return values


@cache
def _iq4_levels(device: torch.device) -> torch.Tensor:
    return torch.tensor(IQ4_LEVELS, dtype=torch.float32, device=device)[:, None]
