"""Adapters for libraries that train on long sequences: yunchang, axolotl-ringmaster, torch's own.

Their ring algorithms are made for GPU kernels, and have on CPUs no exact one, or none with a
backward pass. There they are given longtake's local kernel, so that the exchange is compared.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed.device_mesh import init_device_mesh

from benchmarks.attention.setting import Attention, Setting
from longtake.parallel.kernels.kernel import KernelOptions, SavedTensors
from longtake.parallel.kernels.torch_kernels import cpu_flash, cpu_flash_backward


def torch_attention(setting: Setting) -> Attention:
    """torch's own function on ``[B, s, N, H]``."""

    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
        out = F.scaled_dot_product_attention(
            q, k, v, is_causal=setting.causal, enable_gqa=setting.shape.grouped
        )
        return out.transpose(1, 2)

    return attention


def yunchang_ulysses(setting: Setting) -> Attention:
    from yunchang import UlyssesAttention
    from yunchang.kernels import AttnType

    on_gpu = setting.device_type == "cuda"
    attention = UlyssesAttention(
        dist.group.WORLD, attn_type=AttnType.FA if on_gpu else AttnType.TORCH_MATH
    )
    if not on_gpu:

        def sdpa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **_: Any) -> torch.Tensor:
            q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
            out = F.scaled_dot_product_attention(
                q, k, v, is_causal=setting.causal, enable_gqa=setting.shape.grouped
            )
            return out.transpose(1, 2)

        attention.attn_fn = sdpa
    return lambda q, k, v: attention(q, k, v, causal=setting.causal)


def yunchang_ring(setting: Setting) -> Attention:
    return _yunchang(setting, "basic", given=True)


def yunchang_zigzag(setting: Setting) -> Attention:
    return _yunchang(setting, "zigzag", given=True)


def yunchang_own_kernel(setting: Setting) -> Attention:
    return _yunchang(setting, "basic", given=False)


def _yunchang(setting: Setting, ring: str, *, given: bool) -> Attention:
    from yunchang import LongContextAttention, set_seq_parallel_pg
    from yunchang.kernels import AttnType
    from yunchang.ring import ring_flash_attn, zigzag_ring_flash_attn

    set_seq_parallel_pg(1, dist.get_world_size(), dist.get_rank(), dist.get_world_size())
    on_gpu = setting.device_type == "cuda"
    if given and not on_gpu:
        for module in (ring_flash_attn, zigzag_ring_flash_attn):
            module.select_flash_attn_impl = _given_to_yunchang
    attention = LongContextAttention(
        ring_impl_type=ring, attn_type=AttnType.FA if on_gpu else AttnType.TORCH_MATH
    )
    return lambda q, k, v: attention(q, k, v, causal=setting.causal)


def _given_to_yunchang(kind: Any, stage: str, **_: Any) -> Any:
    """longtake's kernel for CPUs with the arguments that yunchang's rings pass."""

    def forward(
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        dropout_p: float,
        softmax_scale: float,
        **options: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        out, lse = cpu_flash(q, k, v, KernelOptions(softmax_scale, options["causal"]))
        return out, lse.transpose(1, 2)

    def backward(*args: Any, **_: Any) -> None:
        grad_out, q, k, v, out, lse, dq, dk, dv, _dropout, scale, causal, *_rest = args
        saved = SavedTensors(q, k, v, out, lse.transpose(1, 2))
        gradients = cpu_flash_backward(grad_out, saved, KernelOptions(scale, causal))
        for buffer, gradient in zip((dq, dk, dv), gradients, strict=True):
            buffer.copy_(gradient)

    return forward if stage == "fwd-only" else backward


def torch_context_parallel(setting: Setting) -> Attention:
    """torch's context parallel attention, with its head-tail balance under a causal mask.

    On CPUs its dispatcher has no attention operator; its ring takes any, and is called itself.
    """
    from torch.distributed.tensor.experimental import _attention

    _attention._cp_options.enable_load_balance = setting.causal
    if setting.device_type == "cpu":
        return lambda q, k, v: _TorchRing.apply(q, k, v, setting.causal)
    mesh = init_device_mesh(setting.device_type, (dist.get_world_size(),))
    buffer = torch.zeros(2 * dist.get_world_size(), device=setting.device_type)
    _attention.context_parallel(mesh, buffers=[buffer], buffer_seq_dims=[0]).__enter__()
    return torch_attention(setting)


class _TorchRing(torch.autograd.Function):
    """The two passes of torch's ring over longtake's kernel, as torch's handlers call them."""

    @staticmethod
    def forward(
        ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool
    ) -> torch.Tensor:
        from torch.distributed.tensor.experimental._context_parallel import _attention

        def kernel(*tensors: torch.Tensor, is_causal: bool) -> tuple[torch.Tensor, ...]:
            q, k, v = (tensor.transpose(1, 2) for tensor in tensors)
            results = cpu_flash(q, k, v, KernelOptions(q.shape[3] ** -0.5, is_causal))
            return tuple(tensor.transpose(1, 2) for tensor in results)

        q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
        ring: Any = _attention._templated_ring_attention
        out, lse = ring(dist.group.WORLD, 2, kernel, q, k, v, is_causal=causal)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.causal = causal
        result: torch.Tensor = out.transpose(1, 2)
        return result

    @staticmethod
    def backward(ctx: Any, grad_out: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        from torch.distributed.tensor.experimental._context_parallel import _attention

        def kernel(is_causal: bool, **tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
            names = "grad_out", "query", "key", "value", "out", "logsumexp"
            grad_out, *saved = (tensors[name].transpose(1, 2) for name in names)
            options = KernelOptions(grad_out.shape[3] ** -0.5, is_causal)
            gradients = cpu_flash_backward(grad_out, SavedTensors(*saved), options)
            return tuple(gradient.transpose(1, 2) for gradient in gradients)

        ring: Any = _attention._templated_ring_attention_backward
        gradients = ring(
            dist.group.WORLD,
            2,
            kernel,
            grad_out.transpose(1, 2),
            "grad_out",
            *ctx.saved_tensors,
            is_causal=ctx.causal,
        )
        return *(gradient.transpose(1, 2) for gradient in gradients[:3]), None


class _Attention(torch.nn.Module):
    """What a function of transformers' attention interface reads of its module."""

    num_key_value_groups: int


def ringmaster_ulysses(setting: Setting) -> Attention:
    from ringmaster.config import RingmasterConfig
    from ringmaster.runtime import CPRuntime, set_runtime
    from ringmaster.strategies.ulysses import make_ulysses_attention

    size = dist.get_world_size()
    config = RingmasterConfig(size=size, ulysses_size=size, ring_size=1)
    set_runtime(CPRuntime(config=config, ulysses_group=dist.group.WORLD, cp_group=dist.group.WORLD))
    forward, module = make_ulysses_attention("sdpa"), _Attention()
    module.num_key_value_groups = setting.shape.num_heads // setting.shape.num_kv_heads

    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
        out: torch.Tensor = forward(module, q, k, v, None, is_causal=setting.causal)[0]
        return out

    return attention


def ringmaster_ring(setting: Setting) -> Attention:
    """axolotl-ringmaster's ring: point to point, which on CPUs is an explicit softmax."""
    from ringmaster.config import RotateMethod
    from ringmaster.ring import ring_attention

    on_gpu = setting.device_type == "cuda"

    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
        out: torch.Tensor = ring_attention(
            q,
            k,
            v,
            group=dist.group.WORLD,
            causal=setting.causal,
            scaling=None,
            dropout=0.0,
            provider="hf_kernels" if on_gpu else "math",
            rotate_method=RotateMethod.ALLTOALL,
            attn_implementation="flash_attention_2" if on_gpu else "math",
        )
        return out

    return attention


def ringmaster_zigzag(setting: Setting) -> Attention:
    from ringmaster.ring.zigzag import zigzag_ring_attention

    if not setting.causal:
        raise ValueError("zigzag is for causal masks")

    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
        out: torch.Tensor = zigzag_ring_attention(q, k, v, group=dist.group.WORLD, scaling=None)
        return out

    return attention
