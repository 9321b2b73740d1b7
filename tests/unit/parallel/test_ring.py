"""Merging partial attention results over blocks of keys."""

from __future__ import annotations

import pytest
import torch

from longtake.parallel.attention.ring import _merge


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
    (first, *rest), expected = blocks(dtype)
    merged = first[0].clone(), first[1]
    for block in rest:
        merged = _merge(merged, block)
    assert merged[0].dtype == merged[1].dtype == torch.float32
    torch.testing.assert_close(merged[0].double(), expected, rtol=0, atol=1e-5)


def test_log_sum_exps_far_apart_merge_without_overflow() -> None:
    out, lse = torch.ones(1, 1, 1, 4), torch.full((1, 1, 1), -1e4)
    merged, merged_lse = _merge((out.clone(), lse), (2 * out, lse + 2e4))
    assert torch.equal(merged, 2 * out) and merged_lse.item() == 1e4
    merged, merged_lse = _merge((out.clone(), lse), (2 * out, lse - 2e4))
    assert torch.equal(merged, out) and merged_lse.item() == -1e4


def test_the_order_of_blocks_does_not_matter() -> None:
    (first, second, *_), _ = blocks(torch.float32)
    one = _merge((first[0].clone(), first[1]), second)
    other = _merge((second[0].clone(), second[1]), first)
    torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
