"""usp_attention and its gradients on N ranks equal those of one process, masks included."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product

import pytest
import torch
import torch.nn.functional as F

from longtake.parallel import ParallelDims, TokenShards, usp_attention
from longtake.parallel.mesh import sequence_rank
from tests.layouts import HEADS, LAYOUTS, layout_name
from tests.ranks import RankGroups, mesh_of, random_tensors

TOLERANCE = 1e-5


@dataclass(frozen=True)
class Case:
    """One call of usp_attention, on the whole sequence."""

    num_tokens: int
    heads: tuple[int, int]
    causal: bool = False
    zigzag: bool = False
    document_lengths: tuple[int, ...] | None = None
    num_kv_tokens: int | None = None
    batch: int = 1
    head_size: int = 8
    scale: float | None = None
    dtype: torch.dtype = torch.float32

    def shards(self, dims: ParallelDims) -> tuple[TokenShards, TokenShards | None]:
        """The shards of the queries, and of the keys in cross attention."""
        split = TokenShards.zigzag if self.zigzag else TokenShards.even
        shards = split(self.num_tokens, dims)
        if self.num_kv_tokens is None:
            return shards, None
        return shards, split(self.num_kv_tokens, dims)

    def tensors(self) -> list[torch.Tensor]:
        """q, k, v and the gradient of the output."""
        kv_tokens = self.num_tokens if self.num_kv_tokens is None else self.num_kv_tokens
        query, kv = (
            (self.batch, tokens, heads, self.head_size)
            for tokens, heads in zip((self.num_tokens, kv_tokens), self.heads, strict=True)
        )
        return random_tensors(0, [query, kv, kv, query], self.dtype)


def sdpa(case: Case, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Attention of the whole sequence in one process, in the dtype of the tensors."""
    allowed = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool)
    if case.causal:
        allowed = allowed.tril()
    if case.document_lengths:
        document = torch.arange(len(case.document_lengths)).repeat_interleave(
            torch.tensor(case.document_lengths)
        )
        allowed &= document[:, None] == document
    q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
    mask = None if allowed.all() else allowed
    out = F.scaled_dot_product_attention(q, k, v, mask, scale=case.scale, enable_gqa=True)
    return out.transpose(1, 2)


def with_gradients(
    attention: object, tensors: list[torch.Tensor], grad_out: torch.Tensor
) -> list[torch.Tensor]:
    """out, dq, dk and dv."""
    tensors = [tensor.detach().requires_grad_() for tensor in tensors]
    out = attention(*tensors)  # type: ignore[operator]
    return [out.detach(), *torch.autograd.grad(out, tensors, grad_out)]


def errors(dims: ParallelDims, case: Case, dtype: torch.dtype = torch.float64) -> list[float]:
    """On one rank: the largest errors of this rank's out, dq, dk and dv."""
    mesh = mesh_of(dims)
    shards, kv_shards = case.shards(dims)
    *qkv, grad_out = case.tensors()
    exact = with_gradients(
        lambda q, k, v: sdpa(case, q, k, v), [t.to(dtype) for t in qkv], grad_out.to(dtype)
    )
    owners = [shards, kv_shards or shards, kv_shards or shards]
    own = [owner.split(t, mesh, dim=1) for owner, t in zip(owners, qkv, strict=True)]
    results = with_gradients(
        lambda q, k, v: usp_attention(
            q,
            k,
            v,
            mesh=mesh,
            shards=shards,
            kv_shards=kv_shards,
            causal=case.causal,
            document_lengths=case.document_lengths,
            scale=case.scale,
        ),
        own,
        shards.split(grad_out, mesh, dim=1),
    )
    return [
        (result.double() - owner.split(expected, mesh, dim=1).double()).abs().max().item()
        if result.numel()
        else 0.0
        for result, expected, owner in zip(results, exact, [shards, *owners], strict=True)
    ]


def check_cases(dims: ParallelDims, cases: list[Case]) -> None:
    """On one rank: compute each case with the others and compare this rank's tokens."""
    for case in cases:
        found = errors(dims, case)
        assert max(found) <= TOLERANCE, (
            f"{dims} rank {sequence_rank(mesh_of(dims))} {case}: {found}"
        )


@pytest.mark.parametrize("dims", LAYOUTS, ids=layout_name)
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_gradients_equal_one_process(ranks: RankGroups, dims: ParallelDims, causal: bool) -> None:
    tokens = [1, 2, max(1, dims.world_size - 1), 13, 31]
    cases = [
        Case(num_tokens, heads, causal=causal, zigzag=zigzag)
        for num_tokens, heads, zigzag in product(tokens, HEADS, {causal, False})
    ]
    ranks.run(dims.world_size, check_cases, dims, cases)


@pytest.mark.parametrize("dims", LAYOUTS, ids=layout_name)
def test_documents_cross_attention_and_batches(ranks: RankGroups, dims: ParallelDims) -> None:
    documents = [(31,), (1, 2, 3, 25), (13, 5, 13), (1,) * 31]
    cases = [
        Case(31, (6, 2), causal=causal, zigzag=zigzag, document_lengths=lengths)
        for lengths, causal, zigzag in product(documents, (False, True), (False, True))
    ]
    cases += [
        Case(queries, heads, num_kv_tokens=keys, batch=2)
        for (queries, keys), heads in product(
            [(7, 29), (29, 7), (1, 5), (5, 1), (0, 3)], [(1, 1), (6, 2), (3, 3)]
        )
    ]
    cases += [
        replace(Case(31, (6, 3), causal=True, zigzag=True), **each)
        for each in (
            {"batch": 3},
            {"scale": 0.03},
            {"scale": -1.0},
            {"scale": 0.0},
            {"head_size": 1},
            {"head_size": 72},
            {"batch": 0},
        )
    ]
    ranks.run(dims.world_size, check_cases, dims, cases)
