"""Local attention: the kernels that one rank runs on its own tensors.

Every kernel has the same signature:

    q [B, s, n, H], k and v [B, t, m, H], scale -> out [B, s, n, H], lse [B, s, n]

n is a multiple of m, and strides are arbitrary as long as H is contiguous. ``out`` has q's dtype.
``lse`` is the natural logarithm of the sum of exponentials of the scaled scores, in float32
(float64 for float64). A kernel that does not compute it returns None, and is used only where
nothing is merged. No kernel is called with an empty tensor: the CPU kernel would crash (see
:func:`attend`).

To add a kernel, write one function and add one row to ``KERNELS``.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import torch
import torch.nn.functional as F

from longtake.errors import KernelError

LocalAttention = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, float], tuple[torch.Tensor, torch.Tensor | None]
]
"""The signature of every kernel: (q, k, v, scale) -> (out, lse). There is no mask."""


@dataclass(frozen=True)
class KernelNeeds:
    """What a call requires of a kernel. The same on all ranks, so that all select the same kernel.

    Attributes:
        device: The device of the tensors.
        dtype: The dtype of q, k and v.
        head_size: H.
        log_sum_exp: Whether partial results are merged, which needs a log-sum-exp.
    """

    device: torch.device
    dtype: torch.dtype
    head_size: int
    log_sum_exp: bool


@dataclass(frozen=True)
class Kernel:
    """A local attention kernel and its requirements.

    Args:
        name: Name for users.
        run: The function.
        device_type: Device type that it runs on; None for any.
        dtypes: Supported dtypes of q, k and v.
        head_size_step: Number that H must be a multiple of.
        head_size_max: Largest H.
        capability_min: Lowest CUDA compute capability. Ignored on ROCm.
        capability_end: First CUDA compute capability that is not supported. Ignored on ROCm.
        nvidia_only: Whether it fails on ROCm, whose device type is "cuda" as well.
        module: Module of the library that provides it; None for torch.
        install: How to install that library.
        has_log_sum_exp: Whether it returns a log-sum-exp, which merging in a ring needs.
    """

    name: str
    run: LocalAttention
    device_type: str | None
    dtypes: tuple[torch.dtype, ...]
    head_size_step: int = 1
    head_size_max: int | None = None
    capability_min: tuple[int, int] = (0, 0)
    capability_end: tuple[int, int] | None = None
    nvidia_only: bool = False
    module: str | None = None
    install: str = ""
    has_log_sum_exp: bool = True

    def unsupported_reason(self, needs: KernelNeeds) -> str | None:
        """Why this kernel cannot run a call on this machine; None if it can."""
        if needs.log_sum_exp and not self.has_log_sum_exp:
            return "returns no log-sum-exp, which ring_degree > 1 merges by"
        if self.device_type not in (None, needs.device.type):
            return f"runs on {self.device_type} only"
        if needs.dtype not in self.dtypes:
            return f"takes {', '.join(str(dtype).removeprefix('torch.') for dtype in self.dtypes)}"
        if needs.head_size % self.head_size_step:
            return f"takes head sizes that are multiples of {self.head_size_step}"
        if self.head_size_max is not None and needs.head_size > self.head_size_max:
            return f"takes head sizes up to {self.head_size_max}"
        return self._device_refusal(needs.device) or self._module_refusal()

    def _device_refusal(self, device: torch.device) -> str | None:
        if device.type != "cuda":
            return None
        if torch.version.hip is not None:
            return "does not run on ROCm" if self.nvidia_only else None
        capability = torch.cuda.get_device_capability(device)
        end = self.capability_end
        if capability >= self.capability_min and (end is None or capability < end):
            return None
        bounds = f"{self.capability_min} or later" + (f", before {end}" if end else "")
        return f"needs compute capability {bounds}; this device has {capability}"

    def _module_refusal(self) -> str | None:
        return None if self.module is None else _import_failure(self.module, self.install)


@lru_cache(maxsize=64)
def select_kernel(name: str, needs: KernelNeeds) -> Kernel:
    """Select a kernel by name, or with "auto" the fastest that can run the call.

    Args:
        name: "auto", or the name of a kernel.
        needs: The requirements of the call.

    Raises:
        KernelError: The kernel is unknown or cannot run this call; lists those that can.
    """
    refusals = {kernel.name: kernel.unsupported_reason(needs) for kernel in KERNELS}
    able = [kernel for kernel in KERNELS if refusals[kernel.name] is None]
    for kernel in able:
        if name in ("auto", kernel.name):
            return kernel
    call = f"{needs.dtype} with head size {needs.head_size} on {needs.device.type}"
    if not able:
        reasons = "; ".join(f"{other} {reason}" for other, reason in refusals.items())
        raise KernelError(f"kernel={name!r}: no kernel can run {call}: {reasons}")
    can = ", ".join(["auto", *(kernel.name for kernel in able)])
    reason = refusals[name] if name in refusals else "there is no such kernel"
    raise KernelError(f"kernel={name!r} cannot run {call}: {reason}: try one of {can}")


def attend(
    kernel: Kernel,
    q_BsnH: torch.Tensor,
    k_BtmH: torch.Tensor,
    v_BtmH: torch.Tensor,
    scale: float,
    head_runs: Sequence[tuple[slice, slice]],
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Local attention of any number of queries and heads, including zero, over at least one key.

    Args:
        kernel: The kernel.
        q_BsnH: Queries.
        k_BtmH: Keys.
        v_BtmH: Values.
        scale: Factor of the scores.
        head_runs: Pairs of (query heads, KV heads) with a constant group size, from
            :meth:`HeadShards.runs`.

    Returns:
        ``out_BsnH`` and ``lse_Bsn``, as from a kernel.
    """
    if q_BsnH.numel() == 0:
        return torch.empty_like(q_BsnH), q_BsnH.new_empty(q_BsnH.shape[:3], dtype=torch.float32)
    assert k_BtmH.numel() > 0, "attention over no keys is not defined"
    q_BsnH, k_BtmH, v_BtmH = (
        tensor if tensor.stride(-1) == 1 else tensor.contiguous()
        for tensor in (q_BsnH, k_BtmH, v_BtmH)
    )
    if len(head_runs) == 1:
        return kernel.run(q_BsnH, k_BtmH, v_BtmH, scale)
    parts = [
        kernel.run(q_BsnH[:, :, query], k_BtmH[:, :, kv], v_BtmH[:, :, kv], scale)
        for query, kv in head_runs
    ]
    lses = [lse for _, lse in parts if lse is not None]
    return torch.cat([out for out, _ in parts], dim=2), torch.cat(lses, dim=2) if lses else None


def _cpu_flash(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    # contiguous keys per head: 2 % faster in float32, 12 % in bfloat16
    k, v = k.transpose(1, 2).contiguous(), v.transpose(1, 2).contiguous()
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    out, lse = flash(q.transpose(1, 2), k, v, scale=scale)
    return out.transpose(1, 2), lse.transpose(1, 2)


def _sdpa(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
) -> tuple[torch.Tensor, None]:
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    grouped = q.shape[1] != k.shape[1]
    out = F.scaled_dot_product_attention(q, k, v, scale=scale, enable_gqa=grouped)
    return out.transpose(1, 2), None


def _sdpa_flash(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    out, lse, *_ = torch.ops.aten._scaled_dot_product_flash_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), scale=scale
    )
    return out.transpose(1, 2), lse.transpose(1, 2)


def _sdpa_cudnn(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    out, lse, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), None, True, scale=scale
    )
    return out.transpose(1, 2), lse.reshape(out.shape[:3]).transpose(1, 2)  # lse [B, n, s, 1]


def _sdpa_efficient(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    group_size = q.shape[2] // k.shape[2]
    if group_size > 1:  # it does not support grouped heads
        k, v = (tensor.repeat_interleave(group_size, dim=2) for tensor in (k, v))
    out, lse, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), None, True, scale=scale
    )
    return out.transpose(1, 2), lse[..., : q.shape[1]].transpose(1, 2)  # lse [B, n, padded s]


def _flash_attn_2(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    function = importlib.import_module("flash_attn").flash_attn_func
    out, lse, *_ = function(q, k, v, softmax_scale=scale, return_attn_probs=True)
    return out, lse.transpose(1, 2)


def _flash_attn_3(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    function = importlib.import_module("flash_attn_interface").flash_attn_func
    # early releases always return the log-sum-exp, later ones on demand
    on_demand = "return_attn_probs" in _parameters(function)
    extra = {"return_attn_probs": True} if on_demand else {}
    out, lse, *_ = function(q, k, v, softmax_scale=scale, **extra)
    return out, lse.transpose(1, 2)


def _xformers(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    fmha = importlib.import_module("xformers.ops.fmha")
    batch, num_tokens, num_heads, head_size = q.shape
    group_size = num_heads // k.shape[2]
    if group_size > 1:  # groups are a separate dimension: [B, s, m, n / m, H]
        q = q.reshape(batch, num_tokens, k.shape[2], group_size, head_size)
        k, v = (t.unsqueeze(3).expand(-1, -1, -1, group_size, -1) for t in (k, v))
    out, lse = fmha.memory_efficient_attention_forward_requires_grad(q, k, v, scale=scale)
    lse = lse[..., :num_tokens].reshape(batch, num_heads, num_tokens)  # rows may be padded
    return out.reshape(batch, num_tokens, num_heads, head_size), lse.transpose(1, 2)


@cache
def _parameters(function: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)


@cache
def _import_failure(module: str, install: str) -> str | None:
    """Why a library cannot be used: it is not installed, or its import error; None if it can."""
    if importlib.util.find_spec(module.partition(".")[0]) is None:
        return f"{module} is not installed ({install})"
    try:
        importlib.import_module(module)
    except (ImportError, OSError) as error:
        return f"{module} is installed but does not import ({error})"
    return None


_HALF = (torch.float16, torch.bfloat16)
_SINGLE = (*_HALF, torch.float32)
_DOUBLE = (*_SINGLE, torch.float64)

KERNELS: tuple[Kernel, ...] = (
    Kernel(
        "flash-attn-3",
        _flash_attn_3,
        "cuda",
        _HALF,
        head_size_step=8,
        head_size_max=256,
        capability_min=(9, 0),
        capability_end=(10, 0),
        nvidia_only=True,
        module="flash_attn_interface",
        install="built from the hopper folder of flash-attention",
    ),
    Kernel(
        "sdpa-cudnn",
        _sdpa_cudnn,
        "cuda",
        _HALF,
        head_size_step=8,
        head_size_max=128,
        capability_min=(9, 0),
        nvidia_only=True,
    ),
    Kernel(
        "flash-attn-2",
        _flash_attn_2,
        "cuda",
        _HALF,
        head_size_step=8,
        head_size_max=256,
        capability_min=(8, 0),
        module="flash_attn",
        install="pip install 'longtake[flash]'",
    ),
    Kernel(
        "sdpa-flash",
        _sdpa_flash,
        "cuda",
        _HALF,
        head_size_step=8,
        head_size_max=256,
        capability_min=(8, 0),
    ),
    Kernel(
        "xformers",
        _xformers,
        "cuda",
        _HALF,
        head_size_step=8,
        head_size_max=256,
        capability_min=(8, 0),
        nvidia_only=True,
        module="xformers.ops.fmha",
        install="pip install 'longtake[xformers]'",
    ),
    Kernel(
        "sdpa-efficient", _sdpa_efficient, "cuda", _SINGLE, head_size_step=8, capability_min=(8, 0)
    ),
    Kernel("cpu-flash", _cpu_flash, "cpu", _DOUBLE),
    Kernel("sdpa", _sdpa, None, _DOUBLE, has_log_sum_exp=False),
)
"""All kernels, the fastest first: "auto" selects the first that can run the call."""
