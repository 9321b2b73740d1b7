"""USP attention: exact attention over a sequence that is split across a grid of ranks."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch.distributed.device_mesh import DeviceMesh

from longtake.errors import TensorError
from longtake.parallel.all_to_all import (
    UlyssesGroup,
    heads_to_tokens,
    pack_kv,
    tokens_to_heads,
)
from longtake.parallel.exchange import refuse_gradient
from longtake.parallel.heads import HeadShards
from longtake.parallel.kernels import KernelNeeds, attend, select_kernel
from longtake.parallel.mesh import RING_AXIS, ULYSSES_AXIS, axis_degree, axis_rank, sequence_rank
from longtake.parallel.ring import RingGroup, ring_attention
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
    """Attention of every query over every key of a sequence split over ``ring x ulysses`` ranks.

    Equal to ``softmax(scale * q k^T) v`` on the whole sequence, for any number of tokens, query
    heads and KV heads, whether or not the ranks divide them. Called by all ranks of the mesh, or
    of one cfg branch of it, with the same arguments but for the tokens. There is no backward pass.

    Shapes: B batch, s this rank's query tokens, t this rank's keys' tokens, N query heads, M KV
    heads (N is a multiple of M; query head i reads KV head i // (N / M)), H head size.

    Args:
        q: ``[B, s, N, H]``, as ``shards.split`` gives it. float16, bfloat16, float32 or float64.
        k, v: ``[B, t, M, H]``.
        mesh: from :meth:`ParallelDims.build_mesh`; its axes ``ring`` and ``ulysses`` are used. None
            where one process holds the whole sequence: no process group is needed then.
        shards: who owns which query tokens.
        kv_shards: who owns which keys' tokens, where they are another sequence's; else ``shards``.
        kernel: "auto" or the name of a local kernel (longtake.parallel.kernels).
        scale: factor of the scores; ``H ** -0.5`` if None.

    Returns:
        ``[B, s, N, H]`` in q's dtype: the attention of this rank's query tokens.

    Raises:
        LayoutError, TensorError, KernelError: the arguments cannot work; before anything is sent.
        PeerLostError: a rank died, raised, or did not answer within the mesh's ``timeout_s``.

    Source: USP, arXiv 2405.07719, algorithm 1. Communication: one all-to-all for q, k and v and one
    for the output in the Ulysses group; K and V in one buffer, ``ring - 1`` times, in the ring.
    """
    kv_shards = shards if kv_shards is None else kv_shards
    shards.check_mesh(mesh)
    kv_shards.check_mesh(mesh)
    _check_tensors(q, k, v, mesh)
    _check_tokens(q, k, mesh, shards, kv_shards)
    heads = HeadShards.even(q.shape[2], k.shape[2], axis_degree(mesh, ULYSSES_AXIS))
    split_keys = axis_degree(mesh, RING_AXIS) > 1
    needs = KernelNeeds(q.device, q.dtype, q.shape[3], log_sum_exp=split_keys)
    local = partial(
        attend,
        select_kernel(kernel, needs),
        scale=_checked_scale(scale, q.shape[3]),
        head_runs=heads.runs(axis_rank(mesh, ULYSSES_AXIS)),
    )

    if mesh is None or shards.num_ranks == 1:
        return local(q, k, v)[0]
    ring = RingGroup(
        mesh.get_group(RING_AXIS), axis_rank(mesh, RING_AXIS), kv_shards.ring_counts(mesh)
    )
    ulysses = UlyssesGroup(
        mesh.get_group(ULYSSES_AXIS),
        axis_rank(mesh, ULYSSES_AXIS),
        shards.ulysses_counts(mesh),
        kv_shards.ulysses_counts(mesh),
        heads,
    )
    if ulysses.degree == 1:
        return ring_attention(q, pack_kv(k, v), ring, local)
    q, kv = tokens_to_heads(q, k, v, ulysses, contiguous_kv=ring.degree > 1)
    out = ring_attention(q, kv, ring, local)
    del q, kv  # whole buffers, dead before the next one is made
    return heads_to_tokens(out, ulysses)


def _check_tensors(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mesh: DeviceMesh | None
) -> None:
    """Refuse tensors that attention is not defined for."""
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
    refuse_gradient(q, k, v)


def _check_tokens(
    q: torch.Tensor,
    k: torch.Tensor,
    mesh: DeviceMesh | None,
    shards: TokenShards,
    kv_shards: TokenShards,
) -> None:
    """Refuse tensors that do not hold the tokens that the shards say."""
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


def _checked_scale(scale: float | None, head_size: int) -> float:
    if scale is None:
        return float(head_size**-0.5)
    if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not math.isfinite(scale):
        raise TensorError(f"scale={scale!r} must be a finite number: leave it out for H ** -0.5")
    return float(scale)
