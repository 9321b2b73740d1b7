"""Work of operations, and attention that is observed instead of computed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from longtake.parallel import ParallelDims, TokenShards, usp_attention
from longtake.parallel.heads import HeadShards
from longtake.pipelines.costs import AttentionHeads, Work
from longtake.pipelines.counting.attention import AttentionObserver
from longtake.pipelines.counting.buffers import attention_buffers
from longtake.pipelines.counting.work import WorkCounter
from longtake.pipelines.operations import LiveBytes, observing
from tests.layouts import layout_name
from tests.unit.pipelines.models.fake_ranks import one_rank_of


def test_work_is_told_apart_by_what_limits_it() -> None:
    counter = WorkCounter()
    x, weight = torch.empty(10, 4), torch.empty(4, 6)
    video, kernel = torch.empty(1, 3, 4, 8, 8), torch.empty(5, 3, 3, 3, 3)
    with observing(counter):
        torch.mm(x, weight)
        assert counter.work == Work(linear_flops=2 * 10 * 4 * 6, launches=1)
        F.conv3d(video, kernel, padding=1)
        convolution = 2 * (5 * 4 * 8 * 8) * (3 * 27)
        torch.bmm(torch.empty(2, 10, 4), torch.empty(2, 4, 10))
        products = 2 * (2 * 10 * 10 * 4)
        x.transpose(0, 1)[1:]  # views, which cost nothing
        torch.empty(1000)
        x + x[0]  # the row is broadcast
        x.sum()
    assert counter.work == Work(
        2 * 10 * 4 * 6, products, convolution, 4 * (40 + 4 + 40) + 4 * (40 + 1), 5
    )


def test_a_convolution_of_patches_is_a_matrix_product() -> None:
    counter, patch = WorkCounter(), (1, 2, 2)
    with observing(counter):
        F.conv3d(torch.empty(1, 3, 4, 8, 8), torch.empty(5, 3, *patch), stride=patch)
    assert counter.work == Work(linear_flops=2 * (4 * 4 * 4) * (3 * 4) * 5, launches=1)


def test_a_batched_product_with_a_weight_is_not_attention() -> None:
    weights = nn.Parameter(torch.empty(2, 4, 6))
    counter = WorkCounter([weights])
    with observing(counter):
        torch.bmm(torch.empty(2, 10, 4), weights)
        torch.bmm(torch.empty(2, 10, 4), weights[:, :, 1:])
    assert counter.work == Work(linear_flops=2 * 2 * 10 * 4 * (6 + 5), launches=2)


def test_operations_are_those_that_torch_counts() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.Flatten(2), nn.Linear(49, 5), nn.GELU())
    counter, expected = WorkCounter(), FlopCounterMode(display=False)
    with observing(counter):
        model(torch.empty(2, 3, 16, 16))
    with expected:
        model(torch.empty(2, 3, 16, 16))
    found = counter.work
    assert found.convolution_flops > found.linear_flops > 0
    assert found.convolution_flops + found.linear_flops == expected.get_total_flops()


class _Mesh:
    """A mesh that nothing is asked of."""


def test_attention_across_ranks_is_noted_and_other_attention_counted() -> None:
    counter, memory = WorkCounter(), LiveBytes()
    observer = AttentionObserver(counter, memory)
    mesh: Any = _Mesh()
    shards = TokenShards.even(30, ParallelDims())
    with torch.device("meta"), observer, observing(memory, counter):
        q, k = torch.empty(2, 30, 6, 16), torch.empty(2, 30, 3, 16)
        text = torch.empty(2, 7, 6, 16)
        out = usp_attention(q, k, k, mesh=mesh, shards=shards)
        assert (out.shape, counter.work) == (q.shape, Work())
        usp_attention(q, text, text, mesh=None, shards=shards)
        heads_first = q.transpose(1, 2)
        found = F.scaled_dot_product_attention(heads_first, heads_first, value=heads_first)
    assert found.shape == heads_first.shape
    assert observer.heads == AttentionHeads(1, 6, 3, 16)
    assert (observer.num_tokens, observer.live_bytes) == (30, (q.nbytes + k.nbytes + text.nbytes))
    values = 2 * 6 * 16
    assert counter.work == Work(attention_flops=4 * 30 * values * (7 + 30), launches=2)


def test_attention_is_computed_again_after_it_was_observed() -> None:
    q, shards = torch.randn(1, 5, 2, 8), TokenShards.even(5, ParallelDims())
    with AttentionObserver(WorkCounter(), LiveBytes()):
        pass
    with torch.device("cpu"):  # a mode as well
        out = usp_attention(q, q, q, mesh=None, shards=shards)
    heads_first = q.transpose(1, 2)
    expected = F.scaled_dot_product_attention(heads_first, heads_first, heads_first)
    assert torch.allclose(out, expected.transpose(1, 2), atol=1e-6)


LAYOUTS = [
    ParallelDims(ring_degree=ring_degree, ulysses_degree=ulysses_degree)
    for ring_degree, ulysses_degree in [
        (1, 1),
        (1, 2),
        (1, 5),
        (1, 8),
        (2, 1),
        (4, 1),
        (2, 2),
        (2, 4),
    ]
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("num_kv_heads", [12, 4])
@pytest.mark.parametrize("dims", LAYOUTS, ids=layout_name)
def test_buffers_of_attention_across_ranks(
    dims: ParallelDims, num_kv_heads: int, dtype: torch.dtype
) -> None:
    """Against what usp_attention allocates, on a rank without peers.

    The log-sum-exp is left out, and that a rank holds whole KV heads where there are few.
    """
    shards = TokenShards.even(40 * 1000, dims)
    heads, memory = AttentionHeads(1, 12, num_kv_heads, 64), LiveBytes()
    with one_rank_of(dims.world_size):
        mesh = dims.build_mesh("cpu")
        with FakeTensorMode():
            q, k, v = (
                torch.empty(1, shards.counts[0], number, 64, dtype=dtype)
                for number in (12, num_kv_heads, num_kv_heads)
            )
            with observing(memory):
                usp_attention(q, k, v, mesh=mesh, shards=shards)
    own_heads = max(map(len, HeadShards.even(12, num_kv_heads, dims.ulysses_degree).query))
    predicted = attention_buffers(
        heads,
        shards.counts[0],
        dtype.itemsize,
        ulysses=dims.ulysses_degree > 1,
        ring=dims.ring_degree > 1,
        head_share=own_heads * dims.ulysses_degree / 12,
    )
    least, most = (0.97, 1.15) if num_kv_heads == 12 else (0.82, 1.25)
    assert least < predicted / memory.peak < most
