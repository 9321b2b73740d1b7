"""usp_attention and its gradients on N ranks equal those of one process, masks included."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise, product

import pytest
import torch
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from longtake.parallel import ParallelDims, TokenShards
from tests.attention_cases import Case, check_cases
from tests.layouts import HEADS, LAYOUTS, layout_name
from tests.ranks import RankGroups


@pytest.mark.parametrize("dims", LAYOUTS, ids=layout_name)
def test_gradients_equal_one_process(ranks: RankGroups, dims: ParallelDims) -> None:
    few = sorted({1, 2, max(1, dims.world_size - 1)})  # some are fewer than the ranks
    cases = [
        Case(num_tokens, heads, causal=causal, zigzag=causal)
        for num_tokens, heads, causal in product((*few, 31), HEADS, (False, True))
    ]
    cases += [Case(31, heads, causal=True) for heads in HEADS]
    check_cases(ranks, dims, cases)


@pytest.mark.parametrize("dims", LAYOUTS, ids=layout_name)
def test_documents_cross_attention_and_dtypes(ranks: RankGroups, dims: ParallelDims) -> None:
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
            {"num_tokens": (13, 5, 13), "document_lengths": (13, 5, 13)},
            {"dtype": torch.float16},
            {"dtype": torch.float64},
            {"dtype": torch.float64, "zigzag": False},
            {"dtype": torch.float64, "causal": False, "heads": (3, 1)},
            {"dtype": torch.float64, "document_lengths": (13, 5, 13)},
            {"dtype": torch.float64, "causal": False, "num_kv_tokens": 7},
        )
    ]
    check_cases(ranks, dims, cases)


@st.composite
def dealt(draw: st.DrawFn, num_tokens: int, dims: ParallelDims) -> TokenShards:
    """Pieces of a sequence of any lengths, dealt to ranks in any way, which hold them in any order.

    Many ranks get one token or none.
    """
    edges = sorted({0, num_tokens, *draw(st.sets(st.integers(0, num_tokens), max_size=9))})
    owned: list[list[range]] = [[] for _ in range(dims.world_size)]
    for start, stop in draw(st.permutations(list(pairwise(edges)))):
        owned[draw(st.integers(0, dims.world_size - 1))].append(range(start, stop))
    return TokenShards(tuple(map(tuple, owned)))


@st.composite
def lengths_of(draw: st.DrawFn, num_tokens: int) -> tuple[int, ...]:
    """Lengths of segments that add up to a sequence."""
    edges = sorted({0, num_tokens, *draw(st.sets(st.integers(0, num_tokens), max_size=4))})
    return tuple(stop - start for start, stop in pairwise(edges))


@st.composite
def cases_on(draw: st.DrawFn, dims: ParallelDims) -> Case:
    """A call on a layout."""
    num_tokens = draw(st.integers(0, 40))
    cross = num_tokens == 0 or draw(st.integers(0, 3)) == 0
    num_kv_tokens = draw(st.integers(1, 40)) if cross else None
    num_kv_heads = draw(st.integers(1, 4))
    case = Case(
        num_tokens,
        (num_kv_heads * draw(st.integers(1, 4)), num_kv_heads),
        causal=not cross and draw(st.booleans()),
        zigzag=draw(st.booleans()),
        num_kv_tokens=num_kv_tokens,
        batch=draw(st.integers(1, 3)),
        head_size=draw(st.integers(1, 33)),
        scale=draw(st.none() | st.sampled_from([0.0, -0.3, 0.2])),
        dtype=draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16])),
        deterministic=draw(st.booleans()),
        seed=draw(st.integers(0, 2**32 - 1)),
    )
    if not cross and draw(st.booleans()):
        case = replace(case, document_lengths=draw(lengths_of(num_tokens)))
    kind = draw(st.sampled_from(["whole", "segments", "dealt"]))
    if kind == "segments" and num_tokens:
        return replace(case, num_tokens=case.document_lengths or draw(lengths_of(num_tokens)))
    if kind == "dealt":
        case = replace(case, shards=draw(dealt(num_tokens, dims)))
        if cross or draw(st.booleans()):  # queries and keys of one sequence may be dealt apart
            num_keys = num_tokens if num_kv_tokens is None else num_kv_tokens
            case = replace(case, kv_shards=draw(dealt(num_keys, dims)))
    return case


@settings(max_examples=100, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
@given(st.data(), st.sampled_from(LAYOUTS))
def test_any_call_equals_one_process(
    ranks: RankGroups, data: st.DataObject, dims: ParallelDims
) -> None:
    cases = [data.draw(cases_on(dims)) for _ in range(4)]
    note(f"{dims} {cases}")
    check_cases(ranks, dims, cases)
