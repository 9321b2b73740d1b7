"""Meshes over all ranks of a process group, or over some of them."""

from __future__ import annotations

import re

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from longtake.errors import LayoutError
from longtake.parallel import ParallelDims, TokenShards, usp_attention
from longtake.parallel.mesh import CFG_AXIS, RING_AXIS, ULYSSES_AXIS, axis_rank, sequence_rank
from tests.distributed.test_attention_parity import Case, check_cases
from tests.ranks import RankGroups, mesh_of, random_tensors


def coordinates(dims: ParallelDims) -> tuple[int, int, int, int]:
    """On one rank: its cfg, ring and Ulysses ranks, and its sequence rank."""
    mesh = mesh_of(dims)
    assert mesh.mesh_dim_names == ("cfg", "ring", "ulysses")
    for axis in mesh.mesh_dim_names:
        assert dist.get_rank(mesh.get_group(axis)) == axis_rank(mesh, axis)
    cfg_rank, ring_rank, ulysses_rank = (
        axis_rank(mesh, axis) for axis in (CFG_AXIS, RING_AXIS, ULYSSES_AXIS)
    )
    return cfg_rank, ring_rank, ulysses_rank, sequence_rank(mesh)


def test_ulysses_is_innermost_then_ring_then_cfg(ranks: RankGroups) -> None:
    dims = ParallelDims(cfg_degree=2, ring_degree=1, ulysses_degree=3)
    assert ranks.run(6, coordinates, dims) == [
        (cfg, 0, ulysses, ulysses) for cfg in range(2) for ulysses in range(3)
    ]
    dims = ParallelDims(ring_degree=3, ulysses_degree=2)
    assert ranks.run(6, coordinates, dims) == [
        (0, ring, ulysses, ring * 2 + ulysses) for ring in range(3) for ulysses in range(2)
    ]


def test_each_cfg_branch_attends_to_its_own_sequence(ranks: RankGroups) -> None:
    dims = ParallelDims(cfg_degree=2, ring_degree=1, ulysses_degree=3)
    ranks.run(6, check_cases, dims, [Case(13, 4, 2), Case((11, 2), 3, 3)])


def attend_on_some(members: list[int]) -> str:
    """On one rank: attention on a mesh over some ranks of the group; all ranks build it."""
    dims = ParallelDims(ring_degree=2)
    member = dist.get_rank() in members
    mesh = dims.build_mesh("cpu", ranks=members, timeout_s=30)
    shards = TokenShards.even(7, dims)
    q, k, v = random_tensors(0, [(1, 7, 3, 8)] * 3)
    if not member:
        assert mesh.get_coordinate() is None
        with pytest.raises(LayoutError, match=f"rank {dist.get_rank()} is not among"):
            usp_attention(q, k, v, mesh=mesh, shards=shards)
        return "outside"
    out = usp_attention(*(shards.split(t, mesh, 1) for t in (q, k, v)), mesh=mesh, shards=shards)
    q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)
    torch.testing.assert_close(shards.gather(out, mesh, 1), expected, rtol=0, atol=1e-5)
    return "inside"


def test_a_mesh_over_some_ranks_of_the_group(ranks: RankGroups) -> None:
    assert ranks.run(4, attend_on_some, [1, 3]) == ["outside", "inside"] * 2
    assert ranks.run(4, attend_on_some, [0, 1]) == ["inside"] * 2 + ["outside"] * 2


def attend_on_a_plain_mesh() -> None:
    """On one rank: attention on a mesh that torch built, without a cfg axis."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("ring", "ulysses"))
    shards = TokenShards.even(7, ParallelDims(ring_degree=2, ulysses_degree=2))
    q, k, v = random_tensors(0, [(1, 7, 3, 8)] * 3)
    out = usp_attention(*(shards.split(t, mesh, 1) for t in (q, k, v)), mesh=mesh, shards=shards)
    q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)
    torch.testing.assert_close(shards.gather(out, mesh, 1), expected, rtol=0, atol=1e-5)


def test_attention_accepts_a_mesh_built_by_torch(ranks: RankGroups) -> None:
    ranks.run(4, attend_on_a_plain_mesh)


def refused_meshes() -> list[str]:
    """On one rank: errors of build_mesh for layouts that do not fit 4 ranks."""
    messages = []
    for dims, members in [
        (ParallelDims(ring_degree=3, ulysses_degree=2), None),
        (ParallelDims(ulysses_degree=3), None),
        (ParallelDims(cfg_degree=3, ulysses_degree=2), None),
        (ParallelDims(ring_degree=2), [1, 0]),
        (ParallelDims(ring_degree=2), [0, 0]),
        (ParallelDims(ring_degree=2), [3, 4]),
        (ParallelDims(ring_degree=2), [0, 1, 2]),
    ]:
        with pytest.raises(LayoutError) as caught:
            dims.build_mesh("cpu", ranks=members)
        messages.append(str(caught.value))
    with pytest.raises(LayoutError, match="timeout_s=0 must be more than 0"):
        ParallelDims(ring_degree=4).build_mesh("cpu", timeout_s=0)
    with pytest.raises(LayoutError, match="no 'ring' axis"):
        TokenShards.even(4, ParallelDims()).split(
            torch.zeros(4), init_device_mesh("cpu", (4,), mesh_dim_names=("dp",)), dim=0
        )
    return messages


def test_a_layout_that_does_not_fit_is_refused_with_one_that_does(ranks: RankGroups) -> None:
    answers = ranks.run(4, refused_meshes)
    assert all(messages == answers[0] for messages in answers)
    assert answers[0][0] == (
        "ring_degree=3 x ulysses_degree=2 needs 6 ranks, got 4: "
        "try ring_degree=2 x ulysses_degree=2"
    )
    assert "needs 3 ranks, got 4: try ranks=[0, 1, 2], or" in answers[0][1]
    assert re.search(r"cfg_degree=3 .* needs 6 ranks, got 4: try cfg_degree=1", answers[0][2])
    assert all("must be ascending" in message for message in answers[0][3:6])
    assert "needs 2 ranks, got 3" in answers[0][6]
