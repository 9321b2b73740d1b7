"""If a rank raises, leaves or dies, the others raise PeerLostError in time."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator

import pytest
import torch.distributed as dist

from longtake.errors import PeerLostError
from longtake.parallel import ParallelDims, TokenShards, usp_attention
from tests.ranks import RankGroup, random_tensors

TIMEOUT_S = 3.0
WITHIN_S = 10.0
LAYOUTS = [
    ParallelDims(ulysses_degree=3),
    ParallelDims(ring_degree=3),
    ParallelDims(ring_degree=2, ulysses_degree=2),
]


@pytest.fixture
def start() -> Iterator[Callable[[int], RankGroup]]:
    """A function that starts a group of ranks, which a test may break."""
    groups: list[RankGroup] = []

    def start_group(world_size: int) -> RankGroup:
        groups.append(RankGroup(world_size, grace_s=30.0))
        return groups[-1]

    yield start_group
    for group in groups:
        group.close()


def attend_with_a_lost_rank(dims: ParallelDims, how: str, lost: int) -> tuple[str, float]:
    """On one rank: attention that one rank does not join; returns the error and elapsed seconds."""
    mesh = dims.build_mesh("cpu", timeout_s=TIMEOUT_S)
    shards = TokenShards.even(13, dims)
    q, k, v = (shards.split(t, mesh, dim=1) for t in random_tensors(0, [(1, 13, 6, 8)] * 3))
    usp_attention(q, k, v, mesh=mesh, shards=shards)
    if dist.get_rank() == lost:
        if how == "dies between its exchanges":
            _die_at_the_second_exchange()
        elif how == "dies before the call":
            os._exit(1)
        else:
            return "left", 0.0
    start_s = time.monotonic()
    try:
        usp_attention(q, k, v, mesh=mesh, shards=shards)
        shards.gather(q, mesh, dim=1)  # for ranks that shared no group with the lost one
    except PeerLostError as error:
        return str(error), time.monotonic() - start_s
    return "no error", time.monotonic() - start_s


def differentiate_with_a_lost_rank(dims: ParallelDims, how: str, lost: int) -> tuple[str, float]:
    """On one rank: a backward pass in which one rank raises or dies; as above."""
    mesh = dims.build_mesh("cpu", timeout_s=TIMEOUT_S)
    shards = TokenShards.even(13, dims)
    q, k, v = (shards.split(t, mesh, dim=1) for t in random_tensors(0, [(1, 13, 6, 8)] * 3))
    out = usp_attention(q.clone().requires_grad_(), k, v, mesh=mesh, shards=shards)
    if dist.get_rank() == lost and how == "raises":
        return "raised", 0.0
    if dist.get_rank() == lost:
        _die_at_the_second_exchange()
    start_s = time.monotonic()
    try:
        out.sum().backward()
        shards.gather(k, mesh, dim=1)  # for ranks that shared no group with the lost one
    except PeerLostError as error:
        return str(error), time.monotonic() - start_s
    return "no error", time.monotonic() - start_s


def _die_at_the_second_exchange() -> None:
    """End this process at its second exchange from now on."""
    exchanges = 0

    def counted(original: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **kwargs: object) -> object:
            nonlocal exchanges
            exchanges += 1
            if exchanges == 2:
                os._exit(1)
            return original(*args, **kwargs)

        return call

    for name in ("all_to_all_single", "batch_isend_irecv"):
        setattr(dist, name, counted(getattr(dist, name)))


@pytest.mark.parametrize("dims", LAYOUTS, ids=["ulysses", "ring", "both"])
@pytest.mark.parametrize("how", ["leaves", "dies before the call", "dies between its exchanges"])
def test_the_other_ranks_raise_in_time(
    start: Callable[[int], RankGroup], dims: ParallelDims, how: str
) -> None:
    check_the_other_ranks(start(dims.world_size), attend_with_a_lost_rank, dims, how)


@pytest.mark.parametrize(
    ("dims", "how"),
    [*((dims, "dies between its exchanges") for dims in LAYOUTS), (LAYOUTS[2], "raises")],
)
def test_the_other_ranks_raise_in_time_in_the_backward_pass(
    start: Callable[[int], RankGroup], dims: ParallelDims, how: str
) -> None:
    check_the_other_ranks(start(dims.world_size), differentiate_with_a_lost_rank, dims, how)


def check_the_other_ranks(
    group: RankGroup, function: Callable[..., object], dims: ParallelDims, how: str
) -> None:
    """Check that all ranks but the lost one raise PeerLostError in time."""
    lost = 1
    answers = group.outcomes(function, dims, how, lost)
    for rank, (returned, result) in enumerate(answers):
        if rank == lost:
            continue
        assert returned, result
        message, elapsed_s = result
        assert f"rank {rank} lost a peer among ranks" in message, message
        assert elapsed_s < WITHIN_S, f"rank {rank} took {elapsed_s} s"


def gather_alone(dims: ParallelDims) -> tuple[str, float]:
    """On one rank: a gather that rank 0 does not join."""
    mesh = dims.build_mesh("cpu", timeout_s=TIMEOUT_S)
    shards = TokenShards.even(13, dims)
    part = shards.split(random_tensors(0, [(13, 4)])[0], mesh, dim=0)
    if dist.get_rank() == 0:
        return "left", 0.0
    start_s = time.monotonic()
    with pytest.raises(PeerLostError) as caught:
        shards.gather(part, mesh, dim=0)
    return str(caught.value), time.monotonic() - start_s


def test_gather_raises_in_time(start: Callable[[int], RankGroup]) -> None:
    _, (message, elapsed_s) = start(2).run(gather_alone, ParallelDims(ring_degree=2))
    assert "lost a peer among ranks [0, 1]" in message
    assert elapsed_s < WITHIN_S


def build_alone(dims: ParallelDims) -> float:
    """On one rank: a mesh that rank 0 does not build."""
    if dist.get_rank() == 0:
        return 0.0
    start_s = time.monotonic()
    with pytest.raises(PeerLostError):
        dims.build_mesh("cpu", timeout_s=TIMEOUT_S)
    return time.monotonic() - start_s


def test_building_a_mesh_alone_raises_in_time(start: Callable[[int], RankGroup]) -> None:
    assert max(start(2).run(build_alone, ParallelDims(ring_degree=2))) < WITHIN_S
