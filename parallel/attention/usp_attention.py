"""USP attention: exact attention over a sequence that is split across a grid of ranks.

USP, arXiv 2405.07719, algorithm 1. Communication: in the Ulysses group, one all-to-all for q, k and
v and one for the output; in the ring group, ``ring_degree - 1`` transfers of K and V in one buffer.

Legend, upper case for a whole group, lower case for one rank: B batch, S/s query tokens, T/t key
tokens, N/n query heads, M/m KV heads, H head size. N is a multiple of M; query head i reads KV head
i // (N / M).
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.overrides import handle_torch_function, has_torch_function

from longtake.errors import TensorError
from longtake.parallel.attention.all_to_all import (
    UlyssesGroup,
    heads_to_tokens,
    pack_kv,
    tokens_to_heads,
)
from longtake.parallel.attention.ring import BlockAttention, RingGroup, ring_attention
from longtake.parallel.exchange import check_no_gradient
from longtake.parallel.heads import HeadShards
from longtake.parallel.kernels.attend import attend
from longtake.parallel.kernels.kernel import KernelNeeds, KernelOptions
from longtake.parallel.kernels.table import select_kernel
from longtake.parallel.mesh import RING_AXIS, ULYSSES_AXIS, axis_degree, axis_rank, sequence_rank
from longtake.parallel.shards import TokenShards


def usp_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    mesh: DeviceMesh | None,
    shards: TokenShards,
    kv_shards: TokenShards | None = None,
    kernel: str = "auto",
    scale: float | None = None,
) -> torch.Tensor:
    """Attention over a sequence that is split across ``ring x ulysses`` ranks.

    Equals ``softmax(scale * q k^T) v`` over the whole sequence, for any number of tokens, query
    heads and KV heads. Collective: all ranks of the mesh, or of one cfg branch of it, call this
    with the same arguments but for the tokens. There is no backward pass. A
    :class:`torch.overrides.TorchFunctionMode` can observe or replace it, like torch's functions.

    Args:
        q: ``[B, s, N, H]``, this rank's queries; float16, bfloat16, float32 or float64.
        k: ``[B, t, M, H]``, this rank's keys.
        v: ``[B, t, M, H]``, this rank's values.
        mesh: Mesh from :meth:`ParallelDims.build_mesh`; None for a single process.
        shards: Ownership of the query tokens.
        kv_shards: Ownership of the key tokens in cross attention; ``shards`` if None.
        kernel: "auto", or the name of a local kernel (:mod:`longtake.parallel.kernels`).
        scale: Factor of the scores; ``H ** -0.5`` if None.

    Returns:
        ``[B, s, N, H]`` in q's dtype: the attention of this rank's queries.

    Raises:
        LayoutError, TensorError, KernelError: Invalid arguments; raised before anything is sent.
        PeerLostError: A rank died, raised, or did not answer within the mesh's ``timeout_s``.
    """
    if has_torch_function((q, k, v)):
        qkv = (q, k, v)
        options: Any = {"kv_shards": kv_shards, "kernel": kernel, "scale": scale}
        replaced: torch.Tensor = handle_torch_function(
            usp_attention, qkv, *qkv, mesh=mesh, shards=shards, **options
        )
        return replaced
    kv_shards = shards if kv_shards is None else kv_shards
    _check_arguments(q, k, v, mesh, shards, kv_shards)
    heads = HeadShards.even(q.shape[2], k.shape[2], axis_degree(mesh, ULYSSES_AXIS))
    attend_block = _block_attention(q, mesh, heads, kernel, scale)
    if mesh is None or shards.num_ranks == 1:
        return attend_block(q, k, v)[0]
    ulysses, ring = _groups(mesh, shards, kv_shards, heads)
    if ulysses.degree == 1:
        return ring_attention(q, pack_kv(k, v), ring, attend_block)
    q_BSnH, kv_TBmH = tokens_to_heads(q, k, v, ulysses, contiguous_kv=ring.degree > 1)
    del q, k, v
    out_BSnH = ring_attention(q_BSnH, kv_TBmH, ring, attend_block)
    del q_BSnH, kv_TBmH  # free them before heads_to_tokens allocates
    return heads_to_tokens(out_BSnH, ulysses)


def _block_attention(
    q: torch.Tensor, mesh: DeviceMesh | None, heads: HeadShards, kernel: str, scale: float | None
) -> BlockAttention:
    """Local attention of this rank's heads over one block of keys."""
    in_ring = axis_degree(mesh, RING_AXIS) > 1
    needs = KernelNeeds(q.device, q.dtype, q.shape[3], log_sum_exp=in_ring)
    return partial(
        attend,
        select_kernel(kernel, needs),
        options=KernelOptions(_checked_scale(scale, q.shape[3])),
        head_runs=heads.runs(axis_rank(mesh, ULYSSES_AXIS)),
    )


def _groups(
    mesh: DeviceMesh, shards: TokenShards, kv_shards: TokenShards, heads: HeadShards
) -> tuple[UlyssesGroup, RingGroup]:
    """This rank's Ulysses group and ring."""
    ulysses = UlyssesGroup(
        mesh.get_group(ULYSSES_AXIS),
        axis_rank(mesh, ULYSSES_AXIS),
        shards.ulysses_counts(mesh),
        kv_shards.ulysses_counts(mesh),
        heads,
    )
    ring = RingGroup(
        mesh.get_group(RING_AXIS), axis_rank(mesh, RING_AXIS), kv_shards.ring_counts(mesh)
    )
    return ulysses, ring


def _check_arguments(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mesh: DeviceMesh | None,
    shards: TokenShards,
    kv_shards: TokenShards,
) -> None:
    """Check that the tensors fit each other, and hold the tokens that this rank owns."""
    shards.check_mesh(mesh)
    kv_shards.check_mesh(mesh)
    _check_tensors(q, k, v, mesh)
    if kv_shards.num_tokens == 0:
        raise TensorError("the keys have 0 tokens, attention needs at least 1: check kv_shards")
    rank = sequence_rank(mesh)
    for name, tensor, owner in (("q", q, shards), ("k", k, kv_shards)):
        if tensor.shape[1] != owner.counts[rank]:
            raise TensorError(
                f"{name} of shape {tuple(tensor.shape)} has {tensor.shape[1]} tokens, sequence "
                f"rank {rank} owns {owner.counts[rank]} of {owner.num_tokens}: pass what "
                "shards.split gives, or build the shards for this length"
            )


def _check_tensors(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mesh: DeviceMesh | None
) -> None:
    """Check shapes, dtypes and devices, and that no gradient is required."""
    shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
    if not (q.ndim == k.ndim == v.ndim == 4):
        raise TensorError(f"{shapes} must have 4 dimensions: [batch, tokens, heads, head size]")
    if k.shape != v.shape or q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3]:
        raise TensorError(
            f"{shapes} must agree: k with v in all, q with k in batch (first) and head size (last)"
        )
    num_heads, num_kv_heads, head_size = q.shape[2], k.shape[2], q.shape[3]
    if min(num_heads, num_kv_heads, head_size) < 1 or num_heads % num_kv_heads:
        raise TensorError(
            f"{num_heads} query heads and {num_kv_heads} KV heads of size {head_size}: there must "
            "be at least 1 of each, and the KV heads must divide the query heads"
        )
    if not (q.dtype == k.dtype == v.dtype and q.device == k.device == v.device):
        raise TensorError(
            f"q is {q.dtype} on {q.device}, k {k.dtype} on {k.device}, v {v.dtype} on {v.device}: "
            "convert them to one dtype and device"
        )
    if mesh is not None and q.device.type != mesh.device_type:
        raise TensorError(
            f"q is on {q.device}, the mesh on {mesh.device_type}: move q, k and v there, or build "
            f"the mesh with device_type={q.device.type!r}"
        )
    check_no_gradient(q, k, v)


def _checked_scale(scale: float | None, head_size: int) -> float:
    if scale is None:
        return float(head_size**-0.5)
    if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not math.isfinite(scale):
        raise TensorError(f"scale={scale!r} must be a finite number: leave it out for H ** -0.5")
    return float(scale)
