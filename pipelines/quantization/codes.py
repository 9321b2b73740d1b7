"""Encodes weights in fewer bits, and decodes them.

A row is encoded by itself, so that the result does not depend on which rows are read together.
float8 and int8 have one scale a row, which maps its largest magnitude to the largest code. nf4 has
16 levels, the quantiles of the normal distribution (QLoRA, arXiv 2305.14314, appendix E), and a
scale for each group of 64 values.

Legend: R rows, C columns, b bytes of a row's codes, g values in a group, G groups of a row.
"""

from __future__ import annotations

from functools import cache

import torch
from torch.nn import functional

from longtake.configs.fields.weights import StorageDtype
from longtake.pipelines.quantization.sizes import NF4_GROUP

CODE_DTYPE = torch.float8_e4m3fn
"""Dtype that codes are held in, whatever they mean: FSDP2 shards parameters of integers in recent
versions of torch only."""

_MAX_FLOAT8, _MAX_INT8 = 448.0, 127.0

NF4_LEVELS = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
"""Levels of nf4: the code of a value is the number of the nearest one."""


def encode(weight_RC: torch.Tensor, storage: StorageDtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Encode rows of a weight.

    Args:
        weight_RC: Rows of a weight in any floating-point dtype.
        storage: Type that they are stored in.

    Returns:
        Codes, ``[R, b]`` in :data:`CODE_DTYPE`, and scales, ``[R, G]`` in float32. Values that are
        not finite make their scale not finite, so that decoded weights show them.
    """
    weight_RC = weight_RC.float()
    if storage == "nf4":
        return _encode_nf4(weight_RC)
    largest = _MAX_FLOAT8 if storage == "float8" else _MAX_INT8
    scales = _scales(weight_RC, largest)
    scaled_RC = weight_RC / scales
    if storage == "float8":
        return scaled_RC.to(CODE_DTYPE), scales
    return scaled_RC.round_().to(torch.int8).view(CODE_DTYPE), scales


def decode(
    codes_Rb: torch.Tensor,
    scales_RG: torch.Tensor,
    num_columns: int,
    storage: StorageDtype,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Decode rows of a weight; the inverse of :func:`encode` but for rounding.

    Args:
        codes_Rb: Result of :func:`encode`.
        scales_RG: Result of :func:`encode`.
        num_columns: C.
        storage: Type that they are stored in.
        dtype: Dtype of the result. Scales multiply in float32.

    Returns:
        ``[R, C]``.
    """
    if storage == "float8":
        return codes_Rb.to(dtype).mul_(scales_RG)
    if storage == "int8":
        return codes_Rb.view(torch.int8).to(dtype).mul_(scales_RG)
    pairs = _pairs_of_levels(codes_Rb.device, dtype)
    levels_RC = functional.embedding(codes_Rb.view(torch.uint8).int(), pairs).flatten(1)
    decoded_RGg = _groups(levels_RC).mul_(scales_RG[..., None])
    return decoded_RGg.flatten(1)[:, :num_columns]


def _encode_nf4(weight_RC: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    num_columns = weight_RC.shape[1]
    weight_RGg = _groups(weight_RC)
    scales_RG1 = _scales(weight_RGg, 1.0)
    scaled_RC = (weight_RGg / scales_RG1).flatten(1)[:, : num_columns + num_columns % 2]
    levels = torch.tensor(NF4_LEVELS)
    codes_RC = torch.zeros(scaled_RC.shape, dtype=torch.uint8)
    for between in ((levels[:-1] + levels[1:]) / 2).tolist():  # faster than torch.bucketize
        codes_RC += scaled_RC > between
    codes_Rb = codes_RC[:, ::2].bitwise_left_shift(4).bitwise_or_(codes_RC[:, 1::2])
    return codes_Rb.view(CODE_DTYPE), scales_RG1.squeeze(-1)


def _groups(rows_RC: torch.Tensor) -> torch.Tensor:
    """Values in groups, ``[R, G, g]``; a view, unless the last group must be filled with zeros."""
    missing = -rows_RC.shape[1] % NF4_GROUP
    if missing:
        rows_RC = functional.pad(rows_RC, (0, missing))
    groups_RGg: torch.Tensor = rows_RC.unflatten(1, (-1, NF4_GROUP))
    return groups_RGg


def _scales(weight: torch.Tensor, largest: float) -> torch.Tensor:
    """Scales that map the largest magnitude along the last dimension to ``largest``.

    They are 1 for zeros, and where float32 has no such scale.
    """
    scales = weight.abs().amax(-1, keepdim=True) / largest
    scales[scales == 0] = 1
    return scales


@cache
def _pairs_of_levels(device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """The two values in each byte of codes, ``[256, 2]``; the first is in the higher four bits."""
    levels = torch.tensor(NF4_LEVELS)
    return torch.cartesian_prod(levels, levels).to(device, dtype)
