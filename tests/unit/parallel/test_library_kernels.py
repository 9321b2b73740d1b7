"""Adapters of other libraries' kernels, over stand-ins with the signatures of their releases."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from longtake.parallel import KernelNeeds
from longtake.parallel.kernels import library_kernels
from tests.kernel_stand_ins import CASES, attention, backward, check_kernel
from tests.libraries import libraries

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


@pytest.mark.parametrize(
    ("version", "capability", "deterministic", "refused"),
    [
        ("4.0.0b7", (9, 0), True, True),
        ("4.0.0b7", (9, 0), False, False),
        ("4.0.0b7", (10, 0), True, False),
        ("4.0.0b8", (9, 0), True, False),
        ("4.0.0", (9, 0), True, False),
    ],
)
def test_early_betas_of_flash_attn_4_are_not_repeatable_on_hopper(
    monkeypatch: pytest.MonkeyPatch,
    version: str,
    capability: tuple[int, int],
    deterministic: bool,
    refused: bool,
) -> None:
    monkeypatch.setattr(library_kernels, "_version", lambda _: version)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    needs = KernelNeeds(
        torch.device("cuda", 0),
        torch.bfloat16,
        128,
        True,
        backward=True,
        deterministic=deterministic,
    )
    reason = library_kernels.flash_attn_4_backward_refusal(needs)
    assert (reason is not None) == refused
    assert reason is None or reason.startswith("is beta 7, which is not repeatable")


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
