"""Invalid calls are refused alike on every rank, before anything is sent."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks.traffic import TrafficMeter
from longtake.errors import RefusedInputError
from longtake.parallel import ParallelDims, TokenShards, usp_attention
from longtake.parallel.mesh import sequence_rank
from tests.layouts import layout_name
from tests.ranks import RankGroups, mesh_of

Change = Callable[[dict[str, Any]], None]


def _arguments(**changes: Any) -> Change:
    return lambda call: call.update(changes)


def _each(change: Callable[[torch.Tensor], torch.Tensor], *names: str) -> Change:
    return lambda call: call.update({name: change(call[name]) for name in names or "qkv"})


def _other_shards(num_tokens: int, num_ranks: int, name: str = "shards") -> Change:
    shards = TokenShards.even(num_tokens, ParallelDims(ulysses_degree=num_ranks))
    return lambda call: call.update({name: shards})


REFUSED: dict[str, tuple[Change, str]] = {
    "three dimensions": (_each(lambda t: t[0]), "must have 4 dimensions"),
    "k and v differ": (_each(lambda t: t[:, :, :1], "v"), "must agree: k with v"),
    "batches differ": (_each(lambda t: t.expand(2, -1, -1, -1), "k", "v"), "must agree"),
    "head sizes differ": (_each(lambda t: t[..., :4], "k", "v"), "must agree"),
    "KV heads do not divide": (_each(lambda t: t[:, :, :5], "q"), "5 query heads and 2 KV heads"),
    "no heads": (_each(lambda t: t[:, :, :0]), "at least 1 of each"),
    "no head size": (_each(lambda t: t[..., :0]), "of size 0"),
    "dtypes differ": (_each(lambda t: t.double(), "k"), "convert them to one dtype"),
    "whole numbers": (_each(lambda t: t.int()), "no kernel can run torch.int32"),
    "complex": (_each(lambda t: t.to(torch.complex64)), "no kernel can run torch.complex64"),
    "another device": (_each(lambda t: t.to("meta")), "q is on meta, the mesh on cpu"),
    "too many tokens": (_each(lambda t: torch.cat([t, t], 1)), "q of shape"),
    "too many keys": (_each(lambda t: torch.cat([t, t], 1), "k", "v"), "k of shape"),
    "other shards": (_other_shards(400, 4), "owns 100 of 400"),
    "shards of other ranks": (_other_shards(13, 3), "shards of 3 ranks on a mesh of ring_degree="),
    "kv_shards of other ranks": (_other_shards(13, 5, "kv_shards"), "shards of 5 ranks"),
    "no keys at all": (_other_shards(0, 4, "kv_shards"), "the keys have 0 tokens"),
    "no such kernel": (
        _arguments(kernel="flash"),
        "there is no such kernel: try one of auto, cpu-fl",
    ),
    "a kernel of another device": (
        _arguments(kernel="sdpa-flash"),
        "runs on cuda only: try one of",
    ),
    "scale is no number": (_arguments(scale=float("nan")), "scale=nan must be a finite number"),
    "scale is a word": (_arguments(scale="big"), "scale='big' must be a finite number"),
    "causal is a word": (_arguments(causal="yes"), "causal='yes' must be True or False"),
    "deterministic is a number": (_arguments(deterministic=1), "deterministic=1 must be True or"),
    "causal cross attention": (
        lambda call: call.update(
            causal=True,
            shards=TokenShards.even(11, ParallelDims(ring_degree=4)),
            kv_shards=call["shards"],
            q=call["q"][:, : 11 // 4 + (sequence_rank(call["mesh"]) < 3)],
        ),
        "11 queries and 13 keys: with causal=True",
    ),
    "documents too short": (_arguments(document_lengths=[5, 7]), "add up to 12 tokens, the seq"),
    "an empty document": (_arguments(document_lengths=[5, 0, 8]), "document_lengths has 0: each"),
    "no documents": (_arguments(document_lengths=[]), "add up to 0 tokens"),
    "documents are text": (_arguments(document_lengths="13"), "document_lengths has '1': each"),
    "documents are a number": (_arguments(document_lengths=13), "document_lengths=13 must be"),
    "a gradient without a kernel for it": (
        lambda call: call.update(kernel="sdpa", k=call["k"].requires_grad_()),
        "has no backward pass with a given log-sum-exp",
    ),
    "no mesh": (_arguments(mesh=None), "ParallelDims.build_mesh"),
}


def refusal(dims: ParallelDims, name: str) -> tuple[str, str]:
    """On one rank: invalidate a valid call; return the error's type and message."""
    mesh = mesh_of(dims)
    shards = TokenShards.even(13, dims)
    q, k, v = (shards.split(torch.zeros(1, 13, n, 8), mesh, dim=1) for n in (6, 2, 2))
    call: dict[str, Any] = {"q": q, "k": k, "v": v, "mesh": mesh, "shards": shards}
    usp_attention(**call)
    REFUSED[name][0](call)
    with TrafficMeter() as meter, pytest.raises(RefusedInputError) as caught:
        usp_attention(**call)
    assert not meter.calls
    return type(caught.value).__name__, str(caught.value)


@pytest.mark.parametrize(
    "dims",
    [
        ParallelDims(ulysses_degree=4),
        ParallelDims(ring_degree=2, ulysses_degree=2),
        ParallelDims(ring_degree=4),
    ],
    ids=layout_name,
)
@pytest.mark.parametrize("name", REFUSED)
def test_an_invalid_call_is_refused_on_every_rank(
    ranks: RankGroups, dims: ParallelDims, name: str
) -> None:
    answers = ranks.run(4, refusal, dims, name)
    assert len({kind for kind, _ in answers}) == 1
    for _, text in answers:
        assert re.search(re.escape(REFUSED[name][1]), text), text
        assert "\n" not in text


def no_log_sum_exp(dims: ParallelDims) -> str:
    """On one rank: attention with a kernel that returns no log-sum-exp."""
    mesh = mesh_of(dims)
    shards = TokenShards.even(13, dims)
    q = k = v = shards.split(torch.zeros(1, 13, 6, 8), mesh, dim=1)
    try:
        usp_attention(q, k, v, mesh=mesh, shards=shards, kernel="sdpa")
    except RefusedInputError as error:
        return str(error)
    return "accepted"


def test_a_kernel_without_log_sum_exp_works_without_a_ring(ranks: RankGroups) -> None:
    assert ranks.run(2, no_log_sum_exp, ParallelDims(ulysses_degree=2)) == ["accepted"] * 2
    for text in ranks.run(2, no_log_sum_exp, ParallelDims(ring_degree=2)):
        assert "returns no log-sum-exp, by which partial results merge: try one of auto" in text


def refused_splits(dims: ParallelDims) -> list[str]:
    """On one rank: errors of split and gather."""
    mesh = mesh_of(dims)
    shards = TokenShards.even(4, dims)
    own = torch.zeros(2, 2)
    messages = []
    for call in (
        lambda: shards.split(torch.zeros(2, 5), mesh, dim=1),
        lambda: shards.split(torch.zeros(2, 4), mesh, dim=2),
        lambda: shards.gather(torch.zeros(2, 3), mesh, dim=1),
        lambda: shards.gather(own, mesh, dim=-3),
        lambda: shards.gather(own.requires_grad_(), mesh, dim=1),
        lambda: TokenShards.even(4, ParallelDims()).gather(own, mesh, dim=1),
    ):
        with TrafficMeter() as meter, pytest.raises(RefusedInputError) as caught:
            call()
        assert not meter.calls
        messages.append(str(caught.value))
    return messages


def test_split_and_gather_refuse_tensors_that_do_not_fit(ranks: RankGroups) -> None:
    messages = ranks.run(2, refused_splits, ParallelDims(ring_degree=2))[1]
    assert messages[:2] == [
        "shape (2, 5) has 5 tokens in dim=1, the whole sequence has 4: "
        "check dim, or build the shards for this length",
        "dim=2 is not a dimension of a tensor of shape (2, 4): pass -2..1",
    ]
    assert "has 3 tokens in dim=1, sequence rank 1 owns 2" in messages[2]
    assert "dim=-3 is not a dimension" in messages[3]
    assert "requires_grad=True" in messages[4]
    assert "shards of 1 ranks on a mesh of ring_degree=2 x ulysses_degree=1" in messages[5]
