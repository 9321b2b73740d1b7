"""Adapters of torch's CUDA operations, over stand-ins and on the meta device."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from longtake.errors import KernelError
from longtake.parallel.kernels.kernel import KernelOptions, SavedTensors
from tests.kernel_stand_ins import BY_NAME, CASES, SCALE, attention, backward, check_kernel


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
