"""Gradients equal finite differences, in one process."""

from __future__ import annotations

import pytest
import torch

from longtake.parallel import ParallelDims, TokenShards, usp_attention
from tests.attention_cases import Case

CASES = {
    "self": Case(5, (2, 2)),
    "grouped": Case(5, (6, 2)),
    "one KV head": Case(4, (3, 1), batch=2),
    "causal": Case(6, (2, 1), causal=True),
    "documents": Case(7, (2, 1), document_lengths=(2, 4, 1)),
    "causal documents": Case(7, (2, 1), causal=True, document_lengths=(2, 4, 1)),
    "cross": Case(3, (4, 2), num_kv_tokens=5),
    "scale below 0": Case(5, (2, 1), causal=True, scale=-0.7),
    "scale 0": Case(5, (2, 1), causal=True, scale=0.0),
    "tokens in another order": Case(
        6, (2, 1), causal=True, shards=TokenShards(((range(4, 6), range(0, 1), range(1, 4)),))
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_gradients_equal_finite_differences(case: Case) -> None:
    case = Case(**{**vars(case), "dtype": torch.float64, "head_size": 3})
    shards, kv_shards = case.dealt(ParallelDims())
    q, k, v, _ = (tensor.requires_grad_() for tensor in case.tensors())

    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return usp_attention(q, k, v, mesh=None, shards=shards, kv_shards=kv_shards, **case.options)

    assert torch.autograd.gradcheck(attention, (q, k, v), eps=1e-6, atol=1e-8, rtol=1e-6)
