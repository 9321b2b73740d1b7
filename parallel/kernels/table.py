"""The table of kernels, and the selection of one for a call.

To add a kernel, write its functions and add one row to ``KERNELS``.
"""

from __future__ import annotations

from functools import lru_cache

import torch

from longtake.errors import KernelError
from longtake.parallel.kernels import library_kernels, torch_kernels
from longtake.parallel.kernels.kernel import Kernel, KernelNeeds

_HALF = (torch.float16, torch.bfloat16)
_SINGLE = (*_HALF, torch.float32)
_DOUBLE = (*_SINGLE, torch.float64)

KERNELS: tuple[Kernel, ...] = (
    Kernel(
        "flash-attn-3",
        library_kernels.flash_attn_3,
        "cuda",
        _HALF,
        head_size_step=8,
        head_size_max=256,
        capability_min=(9, 0),
        capability_end=(10, 0),
        nvidia_only=True,
        module=library_kernels.FLASH_ATTN_3,
        install="built from the hopper folder of flash-attention",
        backward=library_kernels.flash_attn_3_backward,
        backward_refusal=library_kernels.flash_attn_3_backward_refusal,
    ),
    Kernel(
        "flash-attn-4",
        library_kernels.flash_attn_4,
        "cuda",
        _HALF,
        head_size_step=8,
        head_size_max=128,
        capability_min=(9, 0),
        capability_end=(12, 0),
        nvidia_only=True,
        module=library_kernels.FLASH_ATTN_4,
        install=library_kernels.FLASH_ATTN_4_INSTALL,
        backward=library_kernels.flash_attn_4_backward,
        backward_refusal=library_kernels.flash_attn_4_backward_refusal,
        repeatable="yes",
    ),
    Kernel(
        "sdpa-cudnn",
        torch_kernels.sdpa_cudnn,
        "cuda",
        _HALF,
        head_size_step=8,
        head_size_max=128,
        capability_min=(9, 0),
        nvidia_only=True,
        backward=torch_kernels.sdpa_cudnn_backward,
        backward_refusal=torch_kernels.sdpa_cudnn_backward_refusal,
    ),
    Kernel(
        "flash-attn-2",
        library_kernels.flash_attn_2,
        "cuda",
        _HALF,
        head_size_step=8,
        head_size_max=256,
        capability_min=(8, 0),
        module=library_kernels.FLASH_ATTN_2,
        install="pip install 'longtake[flash]'",
        backward=library_kernels.flash_attn_2_backward,
        repeatable="yes",
    ),
    Kernel(
        "sdpa-flash",
        torch_kernels.sdpa_flash,
        "cuda",
        _HALF,
        head_size_step=8,
        head_size_max=256,
        capability_min=(8, 0),
        backward=torch_kernels.sdpa_flash_backward,
        backward_refusal=torch_kernels.sdpa_flash_backward_refusal,
        repeatable="torch",
    ),
    Kernel(
        "xformers",
        library_kernels.xformers,
        "cuda",
        _HALF,
        head_size_step=8,
        head_size_max=256,
        capability_min=(8, 0),
        nvidia_only=True,
        module=library_kernels.XFORMERS,
        install="pip install 'longtake[xformers]'",
        backward=library_kernels.xformers_backward,
    ),
    Kernel(
        "sdpa-efficient",
        torch_kernels.sdpa_efficient,
        "cuda",
        _SINGLE,
        head_size_step=8,
        capability_min=(8, 0),
        backward=torch_kernels.sdpa_efficient_backward,
        repeatable="yes",
    ),
    Kernel(
        "cpu-flash",
        torch_kernels.cpu_flash,
        "cpu",
        _DOUBLE,
        backward=torch_kernels.cpu_flash_backward,
        repeatable="yes",
    ),
    Kernel("sdpa", torch_kernels.sdpa, None, _DOUBLE, has_log_sum_exp=False),
)
"""All kernels, the fastest first: "auto" selects the first that can run the call."""


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
    backward = "a repeatable backward pass of " if needs.deterministic else "a backward pass of "
    call = f"{needs.dtype} with head size {needs.head_size} on {needs.device.type}"
    call = backward + call if needs.backward else call
    if not able:
        reasons = "; ".join(f"{other} {reason}" for other, reason in refusals.items())
        raise KernelError(f"kernel={name!r}: no kernel can run {call}: {reasons}")
    can = ", ".join(["auto", *(kernel.name for kernel in able)])
    reason = refusals[name] if name in refusals else "there is no such kernel"
    raise KernelError(f"kernel={name!r} cannot run {call}: {reason}: try one of {can}")


def kernel_named(name: str) -> Kernel:
    """The kernel of a name that :func:`select_kernel` gave."""
    return next(kernel for kernel in KERNELS if kernel.name == name)
