"""USP attention: exact attention over a sequence that is split across a grid of ranks.

USP, arXiv 2405.07719, algorithms 1 and 2. Communication: in the Ulysses group, one all-to-all for
q, k and v and one for the output; in the ring group, ``ring_degree - 1`` transfers of K and V in
one buffer. The backward pass sends the gradient of the output, and those of q, k and v, in one
all-to-all each; K and V again; and the gradient of each block to its owner.

Legend, upper case for a whole group, lower case for one rank: B batch, S/s query tokens, T/t key
tokens, N/n query heads, M/m KV heads, H head size. N is a multiple of M; query head i reads KV head
i // (N / M).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import wraps
from typing import Any, ParamSpec

import torch
from torch.autograd import forward_ad
from torch.distributed.device_mesh import DeviceMesh
from torch.overrides import handle_torch_function, has_torch_function

from longtake.errors import TensorError
from longtake.parallel.attention import operator, passes
from longtake.parallel.attention.call import AttentionCall, known_call
from longtake.parallel.attention.mask import Mask
from longtake.parallel.kernels.kernel import KernelNeeds, KernelOptions
from longtake.parallel.kernels.table import select_kernel
from longtake.parallel.mesh import RING_AXIS, axis_degree, sequence_rank
from longtake.parallel.shards import TokenShards
from longtake.parallel.torch_private import is_transformed

P = ParamSpec("P")


def _overridable(function: Callable[P, torch.Tensor]) -> Callable[P, torch.Tensor]:
    """The function, open to ``__torch_function__`` as torch's own are, but to no transform."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> torch.Tensor:
        tensors = (*args, *kwargs.values())
        if has_torch_function(tensors):
            replaced: torch.Tensor = handle_torch_function(call, tensors, *args, **kwargs)
            return replaced
        if not torch.compiler.is_compiling() and is_transformed():
            raise TensorError(
                "usp_attention cannot run inside torch.vmap or a transform of torch.func: use the "
                "batch dimension of q, k and v, and torch.autograd"
            )
        return function(*args, **kwargs)

    return call


@_overridable
def usp_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    mesh: DeviceMesh | None,
    shards: TokenShards,
    kv_shards: TokenShards | None = None,
    causal: bool = False,
    document_lengths: Sequence[int] | None = None,
    kernel: str = "auto",
    scale: float | None = None,
    deterministic: bool = False,
) -> torch.Tensor:
    """Attention over a sequence that is split across ``ring x ulysses`` ranks.

    Equals ``softmax(scale * q k^T) v`` over the whole sequence, for any number of tokens, query
    heads and KV heads, and is differentiable in q, k and v. Collective, and so is its backward
    pass: all ranks of the mesh, or of one cfg branch of it, call this with the same arguments but
    for the tokens, and run the backward pass if one of them does. A
    :class:`torch.overrides.TorchFunctionMode` can observe or replace it, like torch's functions.

    Args:
        q: ``[B, s, N, H]``, this rank's queries; float16, bfloat16, float32 or float64. Under
            autocast float32 is converted, as in torch's own attention.
        k: ``[B, t, M, H]``, this rank's keys.
        v: ``[B, t, M, H]``, this rank's values.
        mesh: Mesh with axes ``ring`` and ``ulysses``, from :meth:`ParallelDims.build_mesh`, or any
            after :func:`connect_mesh`; None for a single process.
        shards: Ownership of the query tokens.
        kv_shards: Ownership of the key tokens in cross attention; ``shards`` if None.
        causal: Whether a query sees the keys up to its own position in the whole sequence only.
            :meth:`TokenShards.zigzag` gives all ranks the same work.
        document_lengths: Lengths of the documents that are packed in the sequence, in tokens; a
            query sees its own document only. None for a single document.
        kernel: "auto", or the name of a local kernel (:mod:`longtake.parallel.kernels`).
        scale: Factor of the scores; ``H ** -0.5`` if None.
        deterministic: Whether the gradients must be bitwise repeatable.

    Returns:
        ``[B, s, N, H]`` in q's dtype: the attention of this rank's queries.

    Raises:
        LayoutError, TensorError, KernelError: Invalid arguments; raised before anything is sent. A
            TensorError also inside ``torch.vmap`` and ``torch.func``, and in a backward pass with
            ``create_graph=True``: there is no second derivative.
        PeerLostError: A rank died, raised, or did not answer within the mesh's ``timeout_s``.
    """
    q, k, v = (_autocast(tensor) for tensor in (q, k, v))
    owners = shards, (shards if kv_shards is None else kv_shards)
    _check_arguments(q, k, v, mesh, *owners)
    mask = _mask(causal, document_lengths, *owners)
    options = _kernel_options(scale, q.shape[3], deterministic)
    if options.scale <= 0:
        q, options = _with_positive_scale(q, options)
    differentiable = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    merges = axis_degree(mesh, RING_AXIS) > 1 or bool(mask.document_ends)
    needs = (q.device, q.dtype, q.shape[3], merges, differentiable, deterministic)
    selected, heads = _select_kernel(kernel, *needs), (q.shape[2], k.shape[2])
    call = AttentionCall.of(mesh, owners, heads, mask, selected, options)
    if differentiable or torch.compiler.is_compiling():
        out: torch.Tensor = operator.usp_attention(q, k, v, call.encode(), differentiable)[0]
        return out
    return passes.forward(q, k, v, known_call(call)).out_BsNH


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _select_kernel(name: str, *needs: Any) -> str:
    """The name of the kernel for a call; a constant to torch.compile.

    Args:
        name: "auto", or the name of a kernel.
        needs: Fields of :class:`KernelNeeds`.
    """
    return select_kernel(name, KernelNeeds(*needs)).name


def _autocast(tensor: torch.Tensor) -> torch.Tensor:
    """A float32 tensor in the dtype of autocast where that is on, as for torch's own attention."""
    device_type = tensor.device.type
    if tensor.dtype != torch.float32 or not torch.amp.is_autocast_available(device_type):
        return tensor
    if not torch.is_autocast_enabled(device_type):
        return tensor
    return tensor.to(torch.get_autocast_dtype(device_type))


def _with_positive_scale(
    q: torch.Tensor, options: KernelOptions
) -> tuple[torch.Tensor, KernelOptions]:
    """The same scores with a scale above 0.

    A kernel that scales hidden scores, which are -inf, and one that subtracts the scaled maximum
    need it.
    """
    if options.scale < 0:
        return -q, replace(options, scale=-options.scale)
    return 0 * q, replace(options, scale=1.0)


def _mask(
    causal: bool,
    document_lengths: Sequence[int] | None,
    shards: TokenShards,
    kv_shards: TokenShards,
) -> Mask:
    """The keys that a query sees."""
    mask = Mask.of(causal, document_lengths, shards.num_tokens)
    if mask.hides and kv_shards.num_tokens != shards.num_tokens:
        raise TensorError(
            f"{shards.num_tokens} queries and {kv_shards.num_tokens} keys: with causal=True or "
            "document_lengths they must be of one sequence: leave out kv_shards"
        )
    return mask


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
    """Check types, shapes, dtypes and devices."""
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        if hasattr(tensor, "to_local"):
            raise TensorError(f"{name} is a DTensor: pass {name}.to_local(), this rank's part")
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
    if any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in (q, k, v)):
        raise TensorError(
            "q, k or v has a forward-mode tangent, as in torch.func.jvp, and usp_attention has no "
            "forward-mode derivative: use backward() or torch.autograd.grad"
        )
    if mesh is not None and q.device.type != mesh.device_type:
        raise TensorError(
            f"q is on {q.device}, the mesh on {mesh.device_type}: move q, k and v there, or build "
            f"the mesh with device_type={q.device.type!r}"
        )


def _kernel_options(scale: float | None, head_size: int, deterministic: bool) -> KernelOptions:
    """The options of a kernel, checked."""
    if not isinstance(deterministic, bool):
        raise TensorError(f"deterministic={deterministic!r} must be True or False")
    if scale is None:
        scale = head_size**-0.5
    if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not math.isfinite(scale):
        raise TensorError(f"scale={scale!r} must be a finite number: leave it out for H ** -0.5")
    return KernelOptions(float(scale), deterministic=deterministic)
