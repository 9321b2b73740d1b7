"""Calls of usp_attention on N ranks, and what one process computes for the whole sequence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F

from longtake.parallel import ParallelDims, TokenShards, usp_attention
from tests.ranks import RankGroups, mesh_of, random_tensors

NAMES = ("out", "dq", "dk", "dv")

TOLERANCE = {
    torch.float64: 1e-12,
    torch.float32: 1e-5,
    torch.bfloat16: 3e-2,
    torch.float16: 4e-3,
}
"""Largest error; of half precision relative to the largest value."""

ONE_PROCESS = ParallelDims()


@dataclass(frozen=True)
class Case:
    """One call of usp_attention, on the whole sequence.

    Args:
        num_tokens: Length of the sequence, or the lengths of its segments.
        heads: Numbers of query heads and of KV heads.
        causal: As for usp_attention.
        zigzag: Whether tokens are dealt in zigzag.
        document_lengths: As for usp_attention.
        num_kv_tokens: Number of keys in cross attention, or the lengths of their segments.
        batch: Batch size.
        head_size: Head size.
        scale: As for usp_attention.
        dtype: Dtype of the tensors.
        deterministic: As for usp_attention.
        seed: Seed of the tensors.
        shards: Shards of the queries, in place of those of ``zigzag``.
        kv_shards: Shards of the keys, likewise.
    """

    num_tokens: int | tuple[int, ...]
    heads: tuple[int, int]
    causal: bool = False
    zigzag: bool = False
    document_lengths: tuple[int, ...] | None = None
    num_kv_tokens: int | tuple[int, ...] | None = None
    batch: int = 1
    head_size: int = 8
    scale: float | None = None
    dtype: torch.dtype = torch.float32
    deterministic: bool = False
    seed: int = 0
    shards: TokenShards | None = None
    kv_shards: TokenShards | None = None

    def dealt(self, dims: ParallelDims) -> tuple[TokenShards, TokenShards | None]:
        """The shards of the queries, and of the keys in cross attention."""
        split = TokenShards.zigzag if self.zigzag else TokenShards.even
        kv_shards = self.kv_shards
        if self.num_kv_tokens is not None:
            kv_shards = kv_shards or split(self.num_kv_tokens, dims)
        return self.shards or split(self.num_tokens, dims), kv_shards

    def tensors(self) -> list[torch.Tensor]:
        """q, k, v and the gradient of the output."""
        shards, kv_shards = self.dealt(ONE_PROCESS)
        query, kv = (
            (self.batch, tokens, heads, self.head_size)
            for tokens, heads in zip(
                (shards.num_tokens, (kv_shards or shards).num_tokens), self.heads, strict=True
            )
        )
        return random_tensors(self.seed, [query, kv, kv, query], self.dtype)

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments of usp_attention besides mesh and shards."""
        return {
            "causal": self.causal,
            "document_lengths": self.document_lengths,
            "scale": self.scale,
            "deterministic": self.deterministic,
        }


def sdpa(case: Case, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Attention of the whole sequence by torch's function, in the dtype of the tensors."""
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
    attention: Callable[..., torch.Tensor], tensors: Sequence[torch.Tensor], grad_out: torch.Tensor
) -> list[torch.Tensor]:
    """out, dq, dk and dv."""
    tensors = [tensor.detach().requires_grad_() for tensor in tensors]
    out = attention(*tensors)
    return [out.detach(), *torch.autograd.grad(out, tensors, grad_out)]


def expected(case: Case) -> list[torch.Tensor]:
    """out, dq, dk and dv of the whole sequence in float64, by torch's function."""
    return _expected(replace(case, zigzag=False, shards=None, kv_shards=None))


@lru_cache(maxsize=4096)
def _expected(case: Case) -> list[torch.Tensor]:
    *qkv, grad_out = (tensor.double() for tensor in case.tensors())
    return with_gradients(lambda q, k, v: sdpa(case, q, k, v), qkv, grad_out)


def on_rank(dims: ParallelDims, case: Case) -> list[torch.Tensor]:
    """On one rank: out, dq, dk and dv of its tokens."""
    mesh = mesh_of(dims)
    shards, kv_shards = case.dealt(dims)
    owners = [shards, kv_shards or shards, kv_shards or shards, shards]
    *own, grad_out = (
        owner.split(tensor, mesh, dim=1)
        for owner, tensor in zip(owners, case.tensors(), strict=True)
    )
    return with_gradients(
        lambda q, k, v: usp_attention(
            q, k, v, mesh=mesh, shards=shards, kv_shards=kv_shards, **case.options
        ),
        own,
        grad_out,
    )


def arrays_on_rank(dims: ParallelDims, cases: Sequence[Case]) -> list[list[Any]]:
    """On one rank: out, dq, dk and dv of each case as arrays, which hold bfloat16 exactly."""
    results = []
    for case in cases:
        tensors = on_rank(dims, case)
        assert all(tensor.dtype == case.dtype and tensor.is_contiguous() for tensor in tensors)
        wide = torch.promote_types(case.dtype, torch.float32)
        results.append([tensor.to(wide).numpy() for tensor in tensors])
    return results


def across_ranks(
    ranks: RankGroups, dims: ParallelDims, cases: Sequence[Case]
) -> list[list[torch.Tensor]]:
    """out, dq, dk and dv of each case, computed on the ranks of a layout; tokens in order."""
    by_rank = ranks.run(dims.world_size, arrays_on_rank, dims, cases)
    return [_whole(dims, case, parts) for case, *parts in zip(cases, *by_rank, strict=True)]


def _whole(dims: ParallelDims, case: Case, parts: list[list[Any]]) -> list[torch.Tensor]:
    """The tensors of the whole sequence, of which each rank computed a part."""
    shards, kv_shards = case.dealt(dims)
    owners = (shards, shards, kv_shards or shards, kv_shards or shards)
    return [
        torch.cat([torch.from_numpy(array) for array in arrays], dim=1)[:, _order(owner)]
        for owner, *arrays in zip(owners, *parts, strict=True)
    ]


def _order(shards: TokenShards) -> torch.Tensor:
    """Where each token of the sequence is when all ranks' tokens stand one after the other."""
    positions = [at for own in shards.ranges for span in own for at in span]
    return torch.tensor(positions, dtype=torch.int64).argsort()


def check_cases(ranks: RankGroups, dims: ParallelDims, cases: Sequence[Case]) -> None:
    """Compute cases on the ranks of a layout, and compare them with one process's."""
    for case, results in zip(cases, across_ranks(ranks, dims, cases), strict=True):
        for name, result, exact in zip(NAMES, results, expected(case), strict=True):
            assert result.shape == exact.shape, f"{dims} {case}: {name} is {result.shape}"
            if result.numel() == 0:
                continue
            error = (result.double() - exact).abs().max().item()
            unit = max(1.0, exact.abs().max().item()) if case.dtype.itemsize == 2 else 1.0
            assert error <= TOLERANCE[case.dtype] * unit, f"{dims} {case}: {name} is off by {error}"
