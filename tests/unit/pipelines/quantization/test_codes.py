"""Codes: how far decoded weights are from the weights, by rows, in any number of columns."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from longtake.configs.fields.weights import StorageDtype
from longtake.pipelines.quantization.codes import CODE_DTYPE, NF4_LEVELS, decode, encode
from longtake.pipelines.quantization.sizes import NF4_GROUP, stored_bytes

STORAGES = pytest.mark.parametrize("storage", get_args(StorageDtype))
COLUMNS = pytest.mark.parametrize("num_columns", [1, 2, 7, 63, 64, 65, 192])


def weights(num_columns: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Nine rows of very different magnitudes."""
    generator = torch.Generator().manual_seed(num_columns)
    magnitudes = 10.0 ** torch.arange(-4, 5)[:, None]
    return (torch.randn(9, num_columns, generator=generator) * magnitudes).to(dtype)


def decoded(
    weight: torch.Tensor, storage: StorageDtype, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """A weight as it is after storage."""
    return decode(*encode(weight, storage), weight.shape[1], storage, dtype)


@COLUMNS
def test_float8_is_torchs_of_the_scaled_row(num_columns: int) -> None:
    weight = weights(num_columns)
    scale = weight.abs().amax(1, keepdim=True) / 448
    expected = (weight / scale).to(torch.float8_e4m3fn).float() * scale
    torch.testing.assert_close(decoded(weight, "float8"), expected, rtol=0, atol=0)
    # Three bits of mantissa: half of 2**-3; less relative precision below the smallest normal.
    error = (expected - weight).abs()
    assert (error <= torch.maximum(weight.abs() * 2**-4, scale * 2**-10)).all()


@COLUMNS
def test_int8_is_off_by_half_a_scale(num_columns: int) -> None:
    weight = weights(num_columns)
    scale = weight.abs().amax(1, keepdim=True) / 127
    error = (decoded(weight, "int8") - weight).abs()
    assert (error <= scale * 0.50001).all()


@COLUMNS
def test_nf4_takes_the_nearest_level_of_its_group(num_columns: int) -> None:
    weight, levels = weights(num_columns), torch.tensor(NF4_LEVELS)
    found = decoded(weight, "nf4")
    for begin in range(0, num_columns, NF4_GROUP):
        group = weight[:, begin : begin + NF4_GROUP]
        scale = group.abs().amax(1, keepdim=True)
        nearest = (group[..., None] / scale[..., None] - levels).abs().argmin(-1)
        expected = levels[nearest] * scale
        torch.testing.assert_close(found[:, begin : begin + NF4_GROUP], expected, rtol=0, atol=0)


def test_nf4_levels_are_quantiles_of_the_normal_distribution() -> None:
    """QLoRA, appendix E: 8 quantiles of each sign, of which 0 is one, from an offset on."""
    offset = torch.tensor(1 - (1 / 32 + 1 / 30) / 2, dtype=torch.float64)
    positive = torch.special.ndtri(torch.linspace(offset, 0.5, 9, dtype=torch.float64)[:-1])
    negative = -torch.special.ndtri(torch.linspace(offset, 0.5, 8, dtype=torch.float64)[:-1])
    levels = torch.cat([positive, negative, torch.zeros(1, dtype=torch.float64)]).sort().values
    expected = (levels / levels.max()).tolist()
    assert NF4_LEVELS == pytest.approx(expected, abs=1e-6)


@STORAGES
@COLUMNS
def test_a_row_does_not_depend_on_the_others(storage: StorageDtype, num_columns: int) -> None:
    weight = weights(num_columns)
    codes, scales = encode(weight, storage)
    for rows in (slice(0, 2), slice(4, 5), slice(5, 9), slice(3, 3)):
        some_codes, some_scales = encode(weight[rows], storage)
        assert torch.equal(some_codes.view(torch.uint8), codes[rows].view(torch.uint8))
        assert torch.equal(some_scales, scales[rows])


@STORAGES
@COLUMNS
def test_sizes(storage: StorageDtype, num_columns: int) -> None:
    codes, scales = encode(weights(num_columns), storage)
    assert (codes.dtype, scales.dtype) == (CODE_DTYPE, torch.float32)
    assert codes.nbytes + scales.nbytes == stored_bytes(9, num_columns, storage)


@STORAGES
def test_zeros_and_the_smallest_values_stay_finite(storage: StorageDtype) -> None:
    for value in (0.0, 1e-45, -1e-40):
        weight = torch.full((2, 70), value)
        torch.testing.assert_close(decoded(weight, storage), weight, rtol=0, atol=1e-40)


@STORAGES
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_stays_so(storage: StorageDtype, value: float) -> None:
    weight = weights(70)
    weight[3, 2] = value
    found = decoded(weight, storage)
    assert not found[3, :64].isfinite().all()
    assert found[[0, 1, 2, *range(4, 9)]].isfinite().all()


@STORAGES
def test_half_precision_is_rounded_float32(storage: StorageDtype) -> None:
    weight = weights(192, torch.bfloat16)
    exact, found = decoded(weight, storage), decoded(weight, storage, torch.bfloat16)
    roundings = 2 if storage == "nf4" else 1  # its levels are rounded, too
    torch.testing.assert_close(found.float(), exact, rtol=roundings * 2**-8, atol=0)
