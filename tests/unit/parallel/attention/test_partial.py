"""Merging partial attention results over blocks of keys, and adding gradients."""

from __future__ import annotations

import pytest
import torch

from longtake.parallel.attention.mask import Tile
from longtake.parallel.attention.partial import GradientSum, PartialAttention

Part = tuple[torch.Tensor, torch.Tensor]
"""out [B, s, n, H] and lse [B, s, n] over some keys."""


def merge(*parts: Part, dtype: torch.dtype = torch.float32) -> Part:
    """Merge results over different keys, for queries of a dtype."""
    out = parts[0][0]
    attention = PartialAttention(torch.empty(out.shape, dtype=dtype))
    key = torch.empty(out.shape[0], 1, 1, 1)
    tile = Tile(slice(0, out.shape[1]), slice(0, 1), causal=False)
    results = iter([(part_out.clone(), lse.clone()) for part_out, lse in parts])
    for _ in parts:
        attention.add(key, key, [tile], lambda *_: next(results))
    merged, merged_lse = attention.result()
    assert merged_lse is not None
    return merged, merged_lse


def blocks(
    dtype: torch.dtype, count: int = 32
) -> tuple[list[tuple[torch.Tensor, torch.Tensor]], torch.Tensor]:
    """Partial results over blocks of keys in a kernel's dtype, and their exact merge."""
    torch.manual_seed(0)
    outs = torch.randn(count, 2, 7, 3, 8).to(dtype)
    lses = torch.randn(count, 2, 7, 3) * 4
    share = lses.double().softmax(dim=0).unsqueeze(-1)
    return list(zip(outs, lses, strict=True)), (outs.double() * share).sum(dim=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_blocks_merge_in_float32(dtype: torch.dtype) -> None:
    """Exact to 1e-5, and rounded once, at the end, to the dtype of the queries."""
    parts, expected = blocks(dtype)
    merged, lse = merge(*parts)
    assert merged.dtype == lse.dtype == torch.float32
    torch.testing.assert_close(merged.double(), expected, rtol=0, atol=1e-5)
    assert torch.equal(merge(*parts, dtype=dtype)[0], merged.to(dtype))


def test_log_sum_exps_far_apart_merge_without_overflow() -> None:
    out, lse = torch.ones(1, 1, 1, 4), torch.full((1, 1, 1), -1e4)
    merged, merged_lse = merge((out, lse), (2 * out, lse + 2e4))
    assert torch.equal(merged, 2 * out) and merged_lse.item() == 1e4
    merged, merged_lse = merge((out, lse), (2 * out, lse - 2e4))
    assert torch.equal(merged, out) and merged_lse.item() == -1e4


def test_the_order_of_blocks_does_not_matter() -> None:
    (first, second, *_), _ = blocks(torch.float32)
    torch.testing.assert_close(merge(first, second), merge(second, first), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_gradients_add_up_in_float32(dtype: torch.dtype) -> None:
    """The sum is rounded once, at the end; parts are of all rows, or of some."""
    torch.manual_seed(0)
    parts = torch.randn(64, 2, 7, 3, 8).to(dtype)
    exact = parts.double().sum(dim=0)
    gradient = GradientSum(torch.empty(2, 7, 3, 8, dtype=dtype))
    for part in parts:
        gradient.add(slice(0, 7), part.clone())
    rounding = 0.0 if dtype == torch.float32 else torch.finfo(dtype).eps / 2
    assert gradient.total().dtype == dtype
    torch.testing.assert_close(gradient.total().double(), exact, rtol=rounding, atol=2e-5)
    rows = GradientSum(torch.empty(2, 7, 3, 8, dtype=dtype))
    for part in parts:
        rows.add(slice(2, 5), part[:, 2:5])
    exact[:, :2] = exact[:, 5:] = 0
    torch.testing.assert_close(rows.total().double(), exact, rtol=rounding, atol=2e-5)


def test_a_gradient_does_not_change_the_part_that_it_was_given() -> None:
    """A part may be a view of a buffer of several gradients."""
    buffer = torch.ones(2, 3, 4, 5)
    gradient = GradientSum(buffer[:, :, :2])
    for _ in range(2):
        gradient.add(slice(0, 3), buffer[:, :, :2])
    assert torch.equal(gradient.total(), torch.full((2, 3, 2, 5), 2.0))
    assert torch.equal(buffer, torch.ones(2, 3, 4, 5))
    assert torch.equal(GradientSum(buffer).total(), torch.zeros(2, 3, 4, 5))
