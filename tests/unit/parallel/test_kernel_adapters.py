"""Adapters of kernels that need a GPU, over stand-ins that compute in float64 on the CPU.

A stand-in has the signature of the function that it stands for, checks what the real one would
refuse or misread, and returns what it would return, so that a wrong call shows here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from longtake.errors import KernelError
from longtake.parallel import KERNELS
from longtake.parallel.kernels.kernel import KernelOptions, SavedTensors
from tests import reference_attention as reference
from tests.libraries import libraries

BY_NAME = {kernel.name: kernel for kernel in KERNELS}
CASES = [
    (heads, causal) for heads in [(6, 2), (4, 4), (3, 1)] for causal in (False, True)
]  # (query heads, KV heads), causal
SCALE = 0.3


def check_kernel(name: str, heads: tuple[int, int], causal: bool, num_tokens: int = 11) -> None:
    """Compare a kernel's output, log-sum-exp and gradients with the reference.

    The gradients are taken over all keys, and over two parts of the keys, as in a ring.
    """
    torch.manual_seed(0)
    kernel, (num_heads, num_kv_heads) = BY_NAME[name], heads
    rows = torch.randn(num_tokens, 2, num_heads + 2 * num_kv_heads, 16).transpose(0, 1)
    q, k, v = rows.split([num_heads, num_kv_heads, num_kv_heads], dim=2)
    q = q if causal else q[:, :7]
    options = KernelOptions(SCALE, causal, deterministic=kernel.repeatable == "yes")
    out, lse = kernel.run(q, k, v, options)
    assert lse is not None and kernel.backward is not None
    for actual, expected in zip((out, lse), reference.attention(q, k, v, options), strict=True):
        torch.testing.assert_close(actual.double(), expected, rtol=0, atol=1e-5)

    grad_out = torch.randn(q.shape[1], 2, num_heads, 16).transpose(0, 1)
    out, lse = (tensor.transpose(0, 1).contiguous().transpose(0, 1) for tensor in (out, lse))
    parts = [slice(None)] if causal else [slice(0, 4), slice(4, None)]
    gradients = [
        kernel.backward(grad_out, SavedTensors(q, k[:, part], v[:, part], out, lse), options)
        for part in parts
    ]
    dq, dk, dv = zip(*gradients, strict=True)
    summed = torch.stack(dq).sum(0), torch.cat(dk, dim=1), torch.cat(dv, dim=1)
    expected_gradients = reference.gradients(grad_out, q, k, v, options)
    for actual, expected in zip(summed, expected_gradients, strict=True):
        torch.testing.assert_close(actual.double(), expected, rtol=0, atol=1e-5)


def attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, causal: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """The contiguous output ``[B, s, n, H]`` and log-sum-exp ``[B, n, s]``, as they all return."""
    out, lse = reference.attention(q, k, v, KernelOptions(scale, causal))
    return out.float(), lse.transpose(1, 2).contiguous().float()


def backward(
    grad_out: torch.Tensor, inputs: Sequence[torch.Tensor], scale: float, causal: bool
) -> tuple[torch.Tensor, ...]:
    """Gradients from (q, k, v, out, lse) in that order, with lse ``[B, n, s]``."""
    q, k, v, out, lse = inputs
    assert lse.shape == (q.shape[0], q.shape[2], q.shape[1]) and lse.dtype == torch.float32
    assert all(tensor.stride(-1) == 1 for tensor in (grad_out, q, k, v, out))
    saved = SavedTensors(q, k, v, out, lse.transpose(1, 2))
    gradients = reference.block_gradients(grad_out, saved, KernelOptions(scale, causal))
    return tuple(gradient.float() for gradient in gradients)


# torch


def cuda_flash(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    dropout_p: float,
    is_causal: bool,
    return_debug_mask: bool,
    scale: float,
) -> tuple[Any, ...]:
    assert dropout_p == 0.0 and not return_debug_mask
    q, k, v = (tensor.transpose(1, 2) for tensor in (query, key, value))
    out, lse = attention(q, k, v, scale, is_causal)
    state = torch.zeros((), dtype=torch.int64)
    return out.transpose(1, 2), lse, None, None, *_lengths(query, key), state, state, out[:0]


def cuda_flash_backward(
    grad_out: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    out: torch.Tensor,
    logsumexp: torch.Tensor,
    cum_seq_q: None,
    cum_seq_k: None,
    max_q: int,
    max_k: int,
    dropout_p: float,
    is_causal: bool,
    philox_seed: torch.Tensor,
    philox_offset: torch.Tensor,
    scale: float,
) -> tuple[torch.Tensor, ...]:
    """Reads lse as contiguous; the dense path is the one without cumulative lengths."""
    assert cum_seq_q is None and cum_seq_k is None and dropout_p == 0.0
    assert (max_q, max_k) == _lengths(query, key) and logsumexp.is_contiguous()
    assert philox_seed.shape == philox_offset.shape == ()
    inputs = [tensor.transpose(1, 2) for tensor in (query, key, value, out)]
    grads = backward(grad_out.transpose(1, 2), [*inputs, logsumexp], scale, is_causal)
    return tuple(grad.transpose(1, 2) for grad in grads)


def cuda_cudnn(
    attn_bias: None, compute_log_sumexp: bool, **arguments: Any
) -> tuple[torch.Tensor, ...]:
    """Returns lse ``[B, n, s, 1]``; not every version takes a single query or key."""
    assert attn_bias is None and compute_log_sumexp
    assert min(arguments["query"].shape[2], arguments["key"].shape[2]) > 1
    out, lse, *others = cuda_flash(**arguments)
    return out, lse.unsqueeze(-1), *others


def cuda_cudnn_backward(
    attn_bias: None, logsumexp: torch.Tensor, **arguments: Any
) -> tuple[torch.Tensor, ...]:
    assert attn_bias is None and logsumexp.shape[3:] == (1,)
    assert min(arguments["query"].shape[2], arguments["key"].shape[2]) > 1
    return cuda_flash_backward(logsumexp=logsumexp.squeeze(-1), **arguments)


def cuda_efficient(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_bias: None,
    compute_log_sumexp: bool,
    dropout_p: float,
    is_causal: bool,
    scale: float,
) -> tuple[torch.Tensor, ...]:
    """Takes as many KV heads as query heads; pads the rows of lse to multiples of 32."""
    assert attn_bias is None and compute_log_sumexp and query.shape[1] == key.shape[1]
    out, lse, *_ = cuda_flash(query, key, value, dropout_p, is_causal, False, scale)
    state = torch.zeros((), dtype=torch.int64)
    return out, F.pad(lse, (0, -lse.shape[2] % 32), value=math.inf), state, state


def cuda_efficient_backward(
    grad_out_: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bias: None,
    out: torch.Tensor,
    cu_seqlens_q: None,
    cu_seqlens_k: None,
    max_seqlen_q: int,
    max_seqlen_k: int,
    logsumexp: torch.Tensor,
    dropout_p: float,
    philox_seed: torch.Tensor,
    philox_offset: torch.Tensor,
    custom_mask_type: int,
    bias_requires_grad: bool,
    scale: float,
    num_splits_key: int | None,
    window_size: None,
    shared_storage_dqdkdv: bool,
) -> tuple[Any, ...]:
    """Takes ``[B, s, n, H]``; out's stride between tokens and lse's alignment are assumed."""
    assert bias is cu_seqlens_q is cu_seqlens_k is window_size is None
    assert not (bias_requires_grad or shared_storage_dqdkdv or dropout_p)
    assert (max_seqlen_q, max_seqlen_k) == (query.shape[1], key.shape[1])
    assert query.shape[2] == key.shape[2] == value.shape[2] and out.is_contiguous()
    assert logsumexp.is_contiguous() and logsumexp.shape[2] % 32 == 0
    lse, padding = logsumexp.tensor_split([max_seqlen_q], dim=2)
    assert bool((padding == math.inf).all()) and num_splits_key == 1
    assert philox_seed.shape == philox_offset.shape == () and custom_mask_type in (0, 1)
    inputs = (query, key, value, out, lse)
    return *backward(grad_out_, inputs, scale, custom_mask_type == 1), None


def _lengths(query: torch.Tensor, key: torch.Tensor) -> tuple[int, int]:
    return query.shape[2], key.shape[2]


class CudaOperations(TorchDispatchMode):
    """Stand-ins of torch's CUDA operations; torch itself checks the calls against the schemas."""

    stand_ins: dict[str, Callable[..., tuple[Any, ...]]] = {
        "aten::_scaled_dot_product_flash_attention": cuda_flash,
        "aten::_scaled_dot_product_flash_attention_backward": cuda_flash_backward,
        "aten::_scaled_dot_product_cudnn_attention": cuda_cudnn,
        "aten::_scaled_dot_product_cudnn_attention_backward": cuda_cudnn_backward,
        "aten::_scaled_dot_product_efficient_attention": cuda_efficient,
        "aten::_efficient_attention_backward": cuda_efficient_backward,
    }

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        stand_in = self.stand_ins.get(func._schema.name)
        if stand_in is None:
            return func(*args, **(kwargs or {}))
        parameters = func._schema.arguments
        given = {
            each.name: each.default_value for each in parameters if each.has_default_value()
        } | (kwargs or {})
        for parameter, value in zip(parameters, args, strict=False):
            given[parameter.name] = value
        return stand_in(**given)


@pytest.mark.parametrize("name", ["sdpa-flash", "sdpa-cudnn", "sdpa-efficient"])
@pytest.mark.parametrize(("heads", "causal"), CASES)
def test_torch_cuda_operations(name: str, heads: tuple[int, int], causal: bool) -> None:
    with CudaOperations():
        check_kernel(name, heads, causal)


def test_cudnn_leaves_a_single_token_to_flash() -> None:
    with CudaOperations():
        check_kernel("sdpa-cudnn", (4, 2), causal=True, num_tokens=1)
        check_kernel("sdpa-cudnn", (4, 2), causal=False, num_tokens=5)  # a part of 1 key


def test_flash_refuses_when_torchs_flag_is_unset_before_the_backward_pass() -> None:
    q = torch.zeros(1, 3, 2, 16)
    saved, kernel = SavedTensors(q, q, q, q, q[..., 0]), BY_NAME["sdpa-flash"]
    assert kernel.backward is not None
    with pytest.raises(KernelError, match="needs torch's flag in the backward pass too"):
        kernel.backward(q, saved, KernelOptions(SCALE, deterministic=True))


@pytest.mark.parametrize("name", ["sdpa-flash", "sdpa-cudnn"])
def test_shapes_of_torch_cuda_operations(name: str) -> None:
    """On the meta device torch checks the call and computes the shapes without a GPU."""
    q = torch.empty(2, 37, 6, 64, dtype=torch.bfloat16, device="meta")
    k = v = torch.empty(2, 11, 3, 64, dtype=torch.bfloat16, device="meta")
    kernel, options = BY_NAME[name], KernelOptions(0.3)
    out, lse = kernel.run(q, k, v, options)
    assert out.shape == q.shape and out.dtype == q.dtype
    assert lse is not None and lse.shape == (2, 37, 6) and lse.dtype == torch.float32
    assert kernel.backward is not None
    gradients = kernel.backward(torch.empty_like(out), SavedTensors(q, k, v, out, lse), options)
    assert [grad.shape for grad in gradients] == [q.shape, k.shape, v.shape]
    assert [grad.dtype for grad in gradients] == [torch.bfloat16] * 3


def test_shapes_of_the_efficient_operation() -> None:
    """Without its backward pass, of which torch's shapes on the meta device lack an argument."""
    q = torch.empty(2, 37, 6, 64, dtype=torch.bfloat16, device="meta")
    k = torch.empty(2, 11, 3, 64, dtype=torch.bfloat16, device="meta")
    out, lse = BY_NAME["sdpa-efficient"].run(q, k, k, KernelOptions(0.3))
    assert out.shape == q.shape and lse is not None and lse.shape == (2, 37, 6)


# flash-attn 2


def flash_attn_2_func(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    return_attn_probs: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, None]:
    assert return_attn_probs and dropout_p == 0.0 and softmax_scale is not None
    return *attention(q, k, v, softmax_scale, causal), None


def flash_attn_2_6_backward(
    dout: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    softmax_lse: torch.Tensor,
    dq: torch.Tensor,
    dk: torch.Tensor,
    dv: torch.Tensor,
    dropout_p: float,
    softmax_scale: float,
    causal: bool,
    window_size: tuple[int, int],
    softcap: float,
    alibi_slopes: None,
    deterministic: bool,
    rng_state: None = None,
) -> None:
    """Writes into dq, dk and dv, which it takes as contiguous in H; reads lse as contiguous."""
    assert window_size == (-1, -1) and softcap == dropout_p == 0.0 and alibi_slopes is None
    assert deterministic and softmax_lse.is_contiguous()
    write(dout, (q, k, v, out, softmax_lse), (dq, dk, dv), softmax_scale, causal)


def write(
    grad_out: torch.Tensor,
    inputs: Sequence[torch.Tensor],
    gradients: Sequence[torch.Tensor],
    scale: float,
    causal: bool,
) -> None:
    """Write the gradients into the tensors given for them."""
    for tensor, grad in zip(gradients, backward(grad_out, inputs, scale, causal), strict=True):
        assert tensor.stride(-1) == 1
        tensor.copy_(grad)


def operator(name: str, schema: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A torch custom operator that changes dq, dk and dv, as the libraries' private functions."""
    return torch.library.custom_op(
        f"longtake_stand_ins::{name}",
        function,
        mutates_args=("dq", "dk", "dv"),
        device_types="cpu",
        schema=schema,
    )


def _flash_attn_2_backward(*arguments: Any, rng_state: None = None) -> torch.Tensor:
    *others, window_left, window_right, softcap, alibi_slopes, deterministic = arguments
    window_size = (window_left, window_right)
    flash_attn_2_6_backward(*[*others, window_size, softcap, alibi_slopes, deterministic])
    return torch.zeros(1)


FLASH_ATTN_2_BACKWARD = operator(
    "flash_attn_2_backward",
    "(Tensor dout, Tensor q, Tensor k, Tensor v, Tensor out, Tensor softmax_lse, Tensor(a6!)? dq, "
    "Tensor(a7!)? dk, Tensor(a8!)? dv, float dropout_p, float softmax_scale, bool causal, "
    "SymInt window_size_left, SymInt window_size_right, float softcap, Tensor? alibi_slopes, "
    "bool deterministic, Tensor? rng_state=None) -> Tensor",
    _flash_attn_2_backward,
)


@pytest.mark.parametrize("function", [flash_attn_2_6_backward, FLASH_ATTN_2_BACKWARD])
@pytest.mark.parametrize(("heads", "causal"), CASES)
def test_flash_attn_2(
    monkeypatch: pytest.MonkeyPatch, function: Any, heads: tuple[int, int], causal: bool
) -> None:
    """Release 2.6, and from 2.7 on, where the backward pass is a custom operator."""
    (module,) = libraries(monkeypatch, "flash_attn.flash_attn_interface")
    give(module, flash_attn_func=flash_attn_2_func, _flash_attn_backward=function)
    check_kernel("flash-attn-2", heads, causal)


def give(module: ModuleType, **members: Any) -> None:
    """Give a stand-in of a module its members."""
    for name, member in members.items():
        setattr(module, name, member)


# FlashAttention 3


def flash_attn_3_2024(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    softmax_scale: float,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
) -> tuple[torch.Tensor, torch.Tensor]:
    """Always returns the log-sum-exp."""
    return attention(q, k, v, softmax_scale, causal)


def flash_attn_3_2025(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    softmax_scale: float,
    causal: bool = False,
    qv: None = None,
) -> torch.Tensor:
    """Never returns it, as in 2.8.3."""
    return attention(q, k, v, softmax_scale, causal)[0]


def flash_attn_3_private(  # type: ignore[no-untyped-def]
    q, k, v, k_new, v_new, qv, out, softmax_scale, causal, window_size=(-1, -1), num_splits=1
):
    assert k_new is v_new is qv is out is None
    return *attention(q, k, v, softmax_scale, causal), None, None


def flash_attn_3_later(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    softmax_scale: float,
    causal: bool = False,
    qv: None = None,
    return_attn_probs: bool = False,
) -> Any:
    """Returns it on demand."""
    out, lse = attention(q, k, v, softmax_scale, causal)
    return (out, lse) if return_attn_probs else out


def flash_attn_3_backward(
    dout: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    softmax_lse: torch.Tensor,
    cu_seqlens_q: None,
    cu_seqlens_k: None,
    sequed_q: None,
    sequed_k: None,
    max_seqlen_q: None,
    max_seqlen_k: None,
    dq: torch.Tensor,
    dk: torch.Tensor,
    dv: torch.Tensor,
    softmax_scale: float,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    deterministic: bool = False,
    sm_margin: int = 0,
) -> None:
    assert cu_seqlens_q is cu_seqlens_k is sequed_q is sequed_k is None
    assert max_seqlen_q is max_seqlen_k is None and softmax_lse.is_contiguous()
    write(dout, (q, k, v, out, softmax_lse), (dq, dk, dv), softmax_scale, causal)


def _flash_attn_3_backward(*arguments: Any) -> torch.Tensor:
    flash_attn_3_backward(*arguments)
    return torch.zeros(1)


FLASH_ATTN_3_BACKWARD = operator(
    "flash_attn_3_backward",
    "(Tensor dout, Tensor q, Tensor k, Tensor v, Tensor out, Tensor softmax_lse, "
    "Tensor? cu_seqlens_q=None, Tensor? cu_seqlens_k=None, Tensor? sequed_q=None, "
    "Tensor? sequed_k=None, SymInt? max_seqlen_q=None, SymInt? max_seqlen_k=None, "
    "Tensor(a12!)? dq=None, Tensor(a13!)? dk=None, Tensor(a14!)? dv=None, "
    "float? softmax_scale=None, bool is_causal=False, SymInt window_size_left=-1, "
    "SymInt window_size_right=-1, float softcap=0.0, bool deterministic=False, "
    "SymInt sm_margin=0) -> Tensor",
    _flash_attn_3_backward,
)


@pytest.mark.parametrize(
    ("forward", "function"),
    [
        (flash_attn_3_2024, flash_attn_3_backward),
        (flash_attn_3_2025, flash_attn_3_backward),
        (flash_attn_3_later, FLASH_ATTN_3_BACKWARD),
    ],
)
@pytest.mark.parametrize(("heads", "causal"), CASES)
def test_flash_attn_3(
    monkeypatch: pytest.MonkeyPatch,
    forward: Any,
    function: Any,
    heads: tuple[int, int],
    causal: bool,
) -> None:
    """Releases that return the log-sum-exp always, never, and on demand."""
    (module,) = libraries(monkeypatch, "flash_attn_interface")
    give(module, flash_attn_func=forward, _flash_attn_forward=flash_attn_3_private)
    give(module, _flash_attn_backward=function)
    check_kernel("flash-attn-3", heads, causal)


# flash-attn-4


def flash_attn_4_forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    softmax_scale: float | None = None,
    causal: bool = False,
    return_lse: bool = False,
) -> tuple[torch.Tensor | None, ...]:
    """Returns two tensors in some releases, and more in others."""
    assert softmax_scale is not None
    out, lse = attention(q, k, v, softmax_scale, causal)
    return out, lse if return_lse else None, None, None, None


def flash_attn_4_backward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    dout: torch.Tensor,
    lse: torch.Tensor,
    softmax_scale: float | None = None,
    causal: bool = False,
    softcap: float = 0.0,
    deterministic: bool = False,
) -> tuple[torch.Tensor, ...]:
    assert softmax_scale is not None and deterministic
    return backward(dout, (q, k, v, out, lse), softmax_scale, causal)


@pytest.mark.parametrize(("heads", "causal"), CASES)
def test_flash_attn_4(
    monkeypatch: pytest.MonkeyPatch, heads: tuple[int, int], causal: bool
) -> None:
    (module,) = libraries(monkeypatch, "flash_attn.cute.interface")
    give(module, _flash_attn_fwd=flash_attn_4_forward, _flash_attn_bwd=flash_attn_4_backward)
    check_kernel("flash-attn-4", heads, causal)


# xformers


class LowerTriangularMask:
    """The mask of xformers that starts at the top left."""


def xformers_forward(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_bias: LowerTriangularMask | None = None,
    p: float = 0.0,
    scale: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Takes groups as a dimension, ``[B, s, m, n / m, H]``; may pad the rows of lse."""
    assert p == 0.0 and scale is not None and key.shape[2:] == query.shape[2:]
    grouped = query.ndim == 5
    q, k, v = (t.flatten(2, 3) if grouped else t for t in (query, key, value))
    out, lse = attention(q, k, v, scale, attn_bias is not None)
    lse = F.pad(lse, (0, 5), value=math.inf)
    if grouped:
        sizes = query.shape[2:4]
        out, lse = out.unflatten(2, sizes), lse.unflatten(1, sizes)
    return out, lse


def xformers_backward(
    grad: torch.Tensor,
    output: torch.Tensor,
    lse: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_bias: LowerTriangularMask | None = None,
    p: float = 0.0,
    scale: float | None = None,
) -> tuple[torch.Tensor, ...]:
    """Takes no groups; its CUTLASS kernel assumes out's stride between tokens."""
    assert p == 0.0 and scale is not None and query.ndim == 4 and output.is_contiguous()
    assert query.shape[2] == key.shape[2] == value.shape[2]
    return backward(grad, (query, key, value, output, lse), scale, attn_bias is not None)


@pytest.mark.parametrize(("heads", "causal"), CASES)
def test_xformers(monkeypatch: pytest.MonkeyPatch, heads: tuple[int, int], causal: bool) -> None:
    (module,) = libraries(monkeypatch, "xformers.ops.fmha")
    give(
        module,
        LowerTriangularMask=LowerTriangularMask,
        memory_efficient_attention_forward_requires_grad=xformers_forward,
        memory_efficient_attention_backward=xformers_backward,
    )
    check_kernel("xformers", heads, causal)
