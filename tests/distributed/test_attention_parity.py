"""usp_attention on N ranks equals attention on one rank, for any layout, heads and lengths."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from longtake.parallel import ParallelDims, TokenShards, usp_attention
from tests.layouts import HEADS, LAYOUTS, layout_name
from tests.ranks import RankGroups, mesh_of, random_tensors

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 5e-3, torch.float64: 1e-12}


@dataclass(frozen=True)
class Case:
    """One call of usp_attention, on the whole sequence."""

    num_tokens: int | tuple[int, ...]
    num_heads: int
    num_kv_heads: int
    batch: int = 1
    head_size: int = 8
    num_kv_tokens: int | tuple[int, ...] | None = None
    dtype: torch.dtype = torch.float32
    scale: float | None = None
    magnitude: float = 1.0
    seed: int = 0


def check_cases(dims: ParallelDims, cases: list[Case]) -> None:
    """On one rank: compute each case with the others and compare this rank's tokens."""
    mesh = mesh_of(dims)
    for case in cases:
        shards = TokenShards.even(case.num_tokens, dims)
        kv_shards = None
        if case.num_kv_tokens is not None:
            kv_shards = TokenShards.even(case.num_kv_tokens, dims)
        kv_tokens = (kv_shards or shards).num_tokens
        q, k, v = random_tensors(
            case.seed,
            [
                (case.batch, shards.num_tokens, case.num_heads, case.head_size),
                (case.batch, kv_tokens, case.num_kv_heads, case.head_size),
                (case.batch, kv_tokens, case.num_kv_heads, case.head_size),
            ],
            case.dtype,
        )
        q = q * case.magnitude
        expected = shards.split(_sdpa(q, k, v, case.scale), mesh, dim=1)
        out = usp_attention(
            shards.split(q, mesh, dim=1),
            (kv_shards or shards).split(k, mesh, dim=1),
            (kv_shards or shards).split(v, mesh, dim=1),
            mesh=mesh,
            shards=shards,
            kv_shards=kv_shards,
            scale=case.scale,
        )
        assert out.dtype == case.dtype and out.shape == expected.shape, case
        error = (out.double() - expected.double()).abs().max().item() if out.numel() else 0.0
        assert error <= TOLERANCE[case.dtype], f"{dims} {case}: off by {error}"


def _sdpa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float | None) -> torch.Tensor:
    """One-process attention of the whole sequence, in float32 or better."""
    precise = torch.promote_types(q.dtype, torch.float32)
    q, k, v = (tensor.to(precise).transpose(1, 2) for tensor in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, scale=scale, enable_gqa=True).transpose(1, 2)


@pytest.mark.parametrize("dims", LAYOUTS, ids=layout_name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_self_attention_equals_one_process(
    ranks: RankGroups, dims: ParallelDims, dtype: torch.dtype
) -> None:
    few = [1, 2, max(1, dims.world_size - 1)]  # some are fewer than the ranks
    cases = [
        Case(num_tokens, *heads, batch=batch, dtype=dtype)
        for num_tokens, heads, batch in product((*few, 13, 31), HEADS, (1, 3))
    ]
    ranks.run(dims.world_size, check_cases, dims, cases)


@pytest.mark.parametrize("dims", LAYOUTS, ids=layout_name)
def test_cross_attention_equals_one_process(ranks: RankGroups, dims: ParallelDims) -> None:
    lengths = [(7, 29), (29, 7), (1, 5), (5, 1), (0, 3)]
    cases = [
        Case(num_tokens, *heads, batch=batch, num_kv_tokens=num_kv_tokens)
        for (num_tokens, num_kv_tokens), heads, batch in product(
            lengths, [(1, 1), (3, 1), (6, 2), (6, 6), (8, 4)], (1, 3)
        )
    ]
    ranks.run(dims.world_size, check_cases, dims, cases)


@pytest.mark.parametrize("dims", LAYOUTS, ids=layout_name)
def test_segments_dtypes_and_scales_equal_one_process(
    ranks: RankGroups, dims: ParallelDims
) -> None:
    cases = [
        Case((31, 5), 6, 6),  # video and text, each split over all ranks
        Case((3, 0, 2), 4, 2, num_kv_tokens=(2, 7)),
        Case(31, 6, 3, dtype=torch.float16),
        Case(31, 6, 3, dtype=torch.float64),
        Case(31, 6, 3, scale=0.03),
        Case(31, 6, 3, scale=-1.0),
        Case(31, 6, 3, scale=0.0),
        Case(31, 5, 5, head_size=1),
        Case(31, 5, 1, head_size=72),
        Case(31, 6, 3, magnitude=20.0),  # log-sum-exps far apart: one key dominates
        Case(13, 6, 3, batch=0),
        Case(701, 3, 1, head_size=64),
    ]
    ranks.run(dims.world_size, check_cases, dims, cases)


@pytest.mark.parametrize("ulysses_degree", [5, 7, 16])
def test_24_heads_on_degrees_that_do_not_divide_24(ranks: RankGroups, ulysses_degree: int) -> None:
    dims = ParallelDims(ulysses_degree=ulysses_degree)
    cases = [Case(num_tokens, 24, kv) for num_tokens, kv in product((3, 53), (1, 3, 8, 24))]
    ranks.run(dims.world_size, check_cases, dims, cases)


@st.composite
def layouts_and_cases(draw: st.DrawFn) -> tuple[ParallelDims, list[Case]]:
    """A layout and a few calls on it."""

    def case() -> Case:
        num_kv_heads = draw(st.integers(1, 5))
        tokens = st.one_of(
            st.integers(0, 40), st.lists(st.integers(0, 20), min_size=1, max_size=3).map(tuple)
        )
        num_tokens = draw(tokens)
        num_kv_tokens = draw(st.one_of(st.none(), tokens))
        keys = num_tokens if num_kv_tokens is None else num_kv_tokens
        if keys == 0 or (isinstance(keys, tuple) and sum(keys) == 0):
            num_kv_tokens = 1
        return Case(
            num_tokens,
            num_kv_heads * draw(st.integers(1, 5)),
            num_kv_heads,
            batch=draw(st.integers(1, 3)),
            head_size=draw(st.integers(1, 33)),
            num_kv_tokens=num_kv_tokens,
            dtype=draw(st.sampled_from([torch.float32, torch.bfloat16])),
            seed=draw(st.integers(0, 2**32 - 1)),
        )

    return draw(st.sampled_from(LAYOUTS)), [case() for _ in range(4)]


@settings(
    max_examples=120,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(layouts_and_cases())
def test_any_call_equals_one_process(
    ranks: RankGroups, drawn: tuple[ParallelDims, list[Case]]
) -> None:
    dims, cases = drawn
    note(f"{dims} {cases}")
    ranks.run(dims.world_size, check_cases, dims, cases)
