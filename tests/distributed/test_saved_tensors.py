"""What autograd keeps of usp_attention: nothing that can be derived, and nothing without gradients.

Legend: B batch, s and t a rank's query and key tokens, S and T its Ulysses group's, N query heads,
M KV heads, n and m its own, H head size.
"""

from __future__ import annotations

from math import prod

import pytest
import torch

from longtake.parallel import ParallelDims, usp_attention
from longtake.parallel.heads import HeadShards
from longtake.parallel.mesh import sequence_rank
from tests.attention_cases import Case
from tests.layouts import LAYOUTS, layout_name
from tests.ranks import RankGroups, mesh_of

CASES = [
    Case(tokens, heads, causal=causal, zigzag=causal, batch=2, dtype=dtype)
    for tokens in (1, 13)
    for heads in ((6, 2), (3, 1), (1, 1))
    for causal in (False, True)
    for dtype in (torch.float32, torch.bfloat16)
]

Saved = tuple[tuple[int, ...], torch.dtype]
"""Shape and dtype of a tensor."""


def expected_tensors(dims: ParallelDims, case: Case, rank: int) -> list[Saved]:
    """Tensors that a rank keeps.

    Without a Ulysses group q, k, v, the output and the log-sum-exp, of which only the log-sum-exp
    is not the caller's. With one, the log-sum-exp, q, K with V, and the output, after the exchange.
    """
    shards, batch, size = case.dealt(dims)[0], case.batch, case.head_size
    ring_rank, ulysses_rank = divmod(rank, dims.ulysses_degree)
    group = sum(shards.group_counts(dims.ulysses_degree)[ring_rank])
    heads = HeadShards.even(*case.heads, dims.ulysses_degree)
    n, m = len(heads.query[ulysses_rank]), len(heads.kv[ulysses_rank])
    lse = ((batch, group, n), torch.float32)
    if dims.ulysses_degree == 1:
        query, kv = ((batch, group, heads, size) for heads in case.heads)
        return [*((shape, case.dtype) for shape in (query, kv, kv, query)), lse]
    query, kv, out = (group, batch, n, size), (group, batch, 2 * m, size), (batch, group, n, size)
    return [lse, *((shape, case.dtype) for shape in (query, kv, out))]


def check_saved(dims: ParallelDims) -> None:
    """On one rank: see what autograd saves in each case."""
    mesh = mesh_of(dims)
    for case in CASES:
        shards, _ = case.dealt(dims)
        *qkv, _ = (shards.split(tensor, mesh, dim=1) for tensor in case.tensors())
        kept: list[torch.Tensor] = []

        def keep(tensor: torch.Tensor, kept: list[torch.Tensor] = kept) -> torch.Tensor:
            kept.append(tensor)
            return tensor

        q, k, v = (tensor.clone().requires_grad_() for tensor in qkv)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            out = usp_attention(q, k, v, mesh=mesh, shards=shards, **case.options)
            found = [(tuple(tensor.shape), tensor.dtype) for tensor in kept]
            assert found == expected_tensors(dims, case, sequence_rank(mesh)), (dims, case)
            held = sum(tensor.untyped_storage().nbytes() for tensor in kept)
            described = sum(prod(shape) * dtype.itemsize for shape, dtype in found)
            assert held == described, f"{dims} {case}: views of larger buffers, {held} bytes"
            if dims.ulysses_degree == 1:
                ours = {tensor.data_ptr() for tensor in (q, k, v, out) if tensor.numel()}
                assert {t.data_ptr() for t in kept[:4] if t.numel()} == ours
            kept.clear()
            with torch.no_grad():
                out = usp_attention(q, k, v, mesh=mesh, shards=shards, **case.options)
            assert out.grad_fn is None and not out.requires_grad
            out = usp_attention(*qkv, mesh=mesh, shards=shards, **case.options)
            assert out.grad_fn is None and kept == []


@pytest.mark.parametrize("dims", LAYOUTS, ids=layout_name)
def test_what_autograd_keeps(ranks: RankGroups, dims: ParallelDims) -> None:
    ranks.run(dims.world_size, check_saved, dims)
