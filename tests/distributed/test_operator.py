"""The operator of attention across ranks: its fake, checkpointing, faults and odd tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import product
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from benchmarks.traffic import TrafficMeter
from longtake.parallel import ParallelDims, TokenShards, count_traffic, usp_attention
from longtake.parallel.attention import call, operator
from longtake.parallel.attention.call import AttentionCall, Axis
from longtake.parallel.attention.mask import Mask
from longtake.parallel.kernels.kernel import KernelOptions
from tests.attention_cases import Case, sdpa
from tests.layouts import layout_name
from tests.ranks import RankGroup, RankGroups, mesh_of, random_tensors

NUM_TOKENS, HEADS = 13, (4, 2)
GRIDS = [
    ParallelDims(ring_degree=ring_degree, ulysses_degree=ulysses_degree)
    for ring_degree, ulysses_degree in ((1, 2), (2, 1), (2, 2), (1, 3), (3, 1))
]
Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def whole_tensors(seed: int = 0) -> list[torch.Tensor]:
    """q, k and v of the whole sequence."""
    shapes = [(2, NUM_TOKENS, num_heads, 8) for num_heads in (HEADS[0], HEADS[1], HEADS[1])]
    return random_tensors(seed, shapes)


def attention_of(mesh: DeviceMesh, shards: TokenShards, causal: bool) -> Attention:
    """usp_attention of q, k and v alone."""
    return lambda q, k, v: usp_attention(q, k, v, mesh=mesh, shards=shards, causal=causal)


def gradients(function: Attention, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """Gradients of the sum of a function's squares."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    function(*leaves).square().sum().backward()
    return [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]


def layouts_of(tensors: tuple[torch.Tensor, ...]) -> list[object]:
    """Shapes, dtypes, and strides where they matter: between elements that exist."""
    return [
        (
            tensor.shape,
            tensor.dtype,
            [
                step
                for step, size in zip(tensor.stride(), tensor.shape, strict=True)
                if tensor.numel() > 0 and size > 1
            ],
        )
        for tensor in tensors
    ]


def check_fakes(dims: ParallelDims) -> None:
    """On one rank: compare the outputs of both operators with those of their fakes."""
    mesh = mesh_of(dims)
    for num_keys, (n, m), batch, dtype, causal in product(
        (1, 13), ((6, 2), (1, 1)), (0, 1, 2), (torch.float32, torch.bfloat16), (False, True)
    ):
        keys = TokenShards.zigzag(num_keys, dims)
        queries = keys if causal else TokenShards.zigzag(3, dims)
        shapes = [(batch, queries.num_tokens, n, 4), *[(batch, num_keys, m, 4)] * 2]
        owners = (queries, keys, keys)
        real = [
            shards.split(tensor, mesh, dim=1)
            for shards, tensor in zip(owners, random_tensors(0, shapes, dtype), strict=True)
        ]
        described = AttentionCall(
            Axis.of(mesh, "ring"),
            Axis.of(mesh, "ulysses"),
            queries.ranges,
            keys.ranges,
            n,
            m,
            Mask(causal),
            "cpu-flash",
            KernelOptions(0.5),
        )
        mode = FakeTensorMode()
        fake = [mode.from_tensor(tensor) for tensor in real]
        assert layouts_of(run_both(real, described)) == layouts_of(run_both(fake, described))


def run_both(qkv: Sequence[torch.Tensor], described: AttentionCall) -> tuple[torch.Tensor, ...]:
    """The outputs of both operators: without and with a backward pass, and the gradients."""
    outputs = operator.usp_attention(*qkv, described.encode(), False)
    out, lse, *heads = operator.usp_attention(*qkv, described.encode(), True)
    saved = [lse, *heads] if described.ulysses.degree > 1 else [*qkv, out, lse]
    grads = operator.usp_attention_backward(torch.ones_like(out), saved, described.encode())
    return (*outputs, out, lse, *heads, *grads)


@pytest.mark.parametrize("dims", GRIDS, ids=layout_name)
def test_fakes_have_the_real_shapes_and_strides(ranks: RankGroups, dims: ParallelDims) -> None:
    ranks.run(dims.world_size, check_fakes, dims)


def policy(context: object, function: object, *args: object, **kwargs: object) -> CheckpointPolicy:
    """Save what attention returns; recompute the rest."""
    saves = function is torch.ops.longtake.usp_attention.default
    return CheckpointPolicy.MUST_SAVE if saves else CheckpointPolicy.PREFER_RECOMPUTE


def check_checkpointing(dims: ParallelDims) -> None:
    """On one rank: gradients and traffic of a block with and without checkpointing."""
    mesh = mesh_of(dims)
    shards = TokenShards.zigzag(NUM_TOKENS, dims)
    tensors = [shards.split(tensor, mesh, dim=1) for tensor in whole_tensors()]
    attention = attention_of(mesh, shards, True)

    def block(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return attention(q.sin(), k.sin(), v.sin()).sin()

    selective = partial(create_selective_checkpoint_contexts, policy)
    plain, recomputed, saved = (
        block,
        partial(checkpoint, block, use_reentrant=False),
        partial(checkpoint, block, use_reentrant=False, context_fn=selective),
    )
    found, bytes_sent = [], []
    for function in (plain, recomputed, saved):
        with count_traffic() as traffic:
            found.append(gradients(function, tensors))
        bytes_sent.append(traffic.bytes_sent)
    for same in found[1:]:
        assert all(map(torch.equal, same, found[0]))
    with count_traffic() as forward, torch.no_grad():
        block(*tensors)
    assert bytes_sent == [bytes_sent[0], bytes_sent[0] + forward.bytes_sent, bytes_sent[0]]
    assert bytes_sent[0] > forward.bytes_sent > 0


@pytest.mark.parametrize("dims", GRIDS[:3], ids=layout_name)
def test_checkpoints_run_forward_again_or_save_it(ranks: RankGroups, dims: ParallelDims) -> None:
    ranks.run(dims.world_size, check_checkpointing, dims)


def check_counts(dims: ParallelDims) -> None:
    """On one rank: count_traffic counts a backward pass as torch's dispatcher sees it."""
    mesh = mesh_of(dims)
    shards = TokenShards.zigzag(NUM_TOKENS, dims)
    q, k, v = (shards.split(tensor, mesh, dim=1) for tensor in whole_tensors())
    out = attention_of(mesh, shards, True)(q.clone().requires_grad_(), k, v)
    with count_traffic() as traffic, TrafficMeter() as meter:
        out.sum().backward()
    assert traffic.bytes_sent == meter.bytes_sent > 0
    assert torch.autograd.is_multithreading_enabled()


@pytest.mark.parametrize("dims", GRIDS[:3], ids=layout_name)
def test_backward_passes_are_counted(ranks: RankGroups, dims: ParallelDims) -> None:
    ranks.run(dims.world_size, check_counts, dims)


def odd_uses(attention: Attention) -> dict[str, Attention]:
    """Uses of attention, of this rank's or of all tokens."""

    def strided(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        q = q.transpose(1, 2).contiguous().transpose(1, 2)
        k = k.permute(3, 0, 1, 2).contiguous().permute(1, 2, 3, 0)
        return attention(q, k, torch.cat([v, v], dim=3)[..., ::2])

    def expanded(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return attention(q[:1].expand_as(q), k[:, :, :1].expand_as(k), v[..., :1].expand_as(v))

    def fused(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return attention(*torch.cat([q, k, v], dim=2).split([4, 2, 2], dim=2))

    def several(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        once = attention(q, k, v)
        return attention(once, k, once[:, :, :2]) + attention(q, once[:, :, 2:], v) + once

    def expanded_gradient(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        out = attention(q, k, v)
        return out.mean((0, 2, 3), keepdim=True).expand_as(out)

    return {
        "strided": strided,
        "expanded": expanded,
        "fused": fused,
        "several": several,
        "expanded gradient": expanded_gradient,
        "the same tensor": lambda q, k, v: attention(q, q, q),
        "keys without gradient": lambda q, k, v: attention(q, k.detach(), v),
        "queries without gradient": lambda q, k, v: attention(q.detach(), k, v),
    }


def check_odd_uses(dims: ParallelDims) -> None:
    """On one rank: gradients of each use against those of one process in float64."""
    mesh = mesh_of(dims)
    shards = TokenShards.zigzag(NUM_TOKENS, dims)
    tensors = [tensor / 2 for tensor in whole_tensors()]
    own = [shards.split(tensor, mesh, dim=1) for tensor in tensors]
    exact = odd_uses(partial(sdpa, Case(NUM_TOKENS, HEADS, causal=True)))
    for name, use in odd_uses(attention_of(mesh, shards, True)).items():
        expected = gradients(exact[name], [tensor.double() for tensor in tensors])
        for found, whole in zip(gradients(use, own), expected, strict=True):
            torch.testing.assert_close(
                found.double(),
                shards.split(whole, mesh, dim=1),
                rtol=1e-5,
                atol=1e-5,
                msg=partial("{}: {}".format, name),
            )


@pytest.mark.parametrize("dims", [ParallelDims(), *GRIDS], ids=layout_name)
def test_odd_tensors_and_graphs(ranks: RankGroups, dims: ParallelDims) -> None:
    ranks.run(dims.world_size, check_odd_uses, dims)


def check_against_one_process(mesh: DeviceMesh, dims: ParallelDims, seed: int = 0) -> None:
    """On one rank: gradients of causal attention against those of one process in float64."""
    shards = TokenShards.zigzag(NUM_TOKENS, dims)
    tensors = whole_tensors(seed)
    own = [shards.split(tensor, mesh, dim=1) for tensor in tensors]
    exact = partial(sdpa, Case(NUM_TOKENS, HEADS, causal=True))
    expected = gradients(exact, [tensor.double() for tensor in tensors])
    for found, whole in zip(
        gradients(attention_of(mesh, shards, True), own), expected, strict=True
    ):
        whole = shards.split(whole, mesh, dim=1)
        torch.testing.assert_close(found.double(), whole, rtol=1e-5, atol=1e-5)


def check_submesh(degrees: tuple[int, int, int, int]) -> None:
    """On one rank: attention in the sequences of a mesh of data, sequence and tensor ranks."""
    world = init_device_mesh("cpu", degrees, mesh_dim_names=("dp", "ring", "ulysses", "tp"))
    dims = ParallelDims(ring_degree=degrees[1], ulysses_degree=degrees[2])
    seed = 2 * world.get_local_rank("dp") + world.get_local_rank("tp")
    check_against_one_process(world["ring", "ulysses"], dims, seed)


@pytest.mark.parametrize("degrees", [(2, 1, 2, 1), (1, 2, 1, 2), (1, 1, 2, 2), (2, 2, 1, 1)])
def test_a_submesh_of_strided_ranks(ranks: RankGroups, degrees: tuple[int, int, int, int]) -> None:
    ranks.run(4, check_submesh, degrees)


def check_failed_kernels(dims: ParallelDims) -> None:
    """On one rank: fail on all ranks in the kernel, forward and backward, and go on."""
    mesh = mesh_of(dims)
    shards = TokenShards.zigzag(NUM_TOKENS, dims)
    others = [shards.split(tensor, mesh, dim=1) for tensor in whole_tensors(seed=7)]
    attention = attention_of(mesh, shards, True)
    for kernel in ("attend", "attend_backward"):
        failing = mock.patch.object(call, kernel, side_effect=MemoryError)
        with failing, pytest.raises(MemoryError):
            gradients(attention, others)
        check_against_one_process(mesh, dims)


@pytest.mark.parametrize("dims", GRIDS, ids=layout_name)
def test_a_call_after_a_failed_kernel_is_right(ranks: RankGroups, dims: ParallelDims) -> None:
    """The failed call leaves nothing on its way, which the next one would receive."""
    ranks.run(dims.world_size, check_failed_kernels, dims)


def check_new_groups(dims: ParallelDims, folder: str) -> None:
    """On one rank: attention on a mesh, and on that of another process group of the same names."""
    for path in ("first", "second"):
        rank, world_size = dist.get_rank(), dist.get_world_size()
        dist.barrier()
        dist.destroy_process_group()
        store = dist.FileStore(str(Path(folder, path)), world_size)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
        check_against_one_process(dims.build_mesh("cpu", timeout_s=20.0), dims)


def test_a_new_process_group_takes_the_place_of_a_destroyed_one(tmp_path: Path) -> None:
    group = RankGroup(2)
    try:
        for dims in GRIDS[:2]:
            folder = tmp_path / layout_name(dims)
            folder.mkdir()
            group.run(check_new_groups, dims, str(folder))
    finally:
        group.close()


def check_mixed_ranks(dims: ParallelDims) -> None:
    """On one rank: the first rank computes no gradient, the others do."""
    mesh = mesh_of(dims)
    for causal, split in product((False, True), (TokenShards.even, TokenShards.zigzag)):
        shards, whole = split(NUM_TOKENS, dims), whole_tensors()
        own = [shards.split(tensor, mesh, dim=1).requires_grad_() for tensor in whole]
        with torch.no_grad() if dist.get_rank() == 0 else nullcontext():
            out = attention_of(mesh, shards, causal)(*own)
        expected = sdpa(Case(NUM_TOKENS, HEADS, causal=causal), *whole)
        expected = shards.split(expected, mesh, dim=1)
        torch.testing.assert_close(out.detach(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dims", GRIDS, ids=layout_name)
def test_the_forward_pass_needs_no_agreement_on_gradients(
    ranks: RankGroups, dims: ParallelDims
) -> None:
    ranks.run(dims.world_size, check_mixed_ranks, dims)
