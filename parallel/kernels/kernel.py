"""What a local attention kernel is: its functions, and the calls that it can run.

Every kernel has the same signature:

    run:      q [B, s, n, H], k and v [B, t, m, H], options -> out [B, s, n, H], lse [B, s, n]
    backward: grad_out [B, s, n, H], saved (q, k, v, out, lse), options -> dq, dk, dv

n is a multiple of m, and strides are arbitrary as long as H is contiguous. ``out`` and the
gradients have q's dtype. ``lse`` is the natural logarithm of the sum of exponentials of the scaled
scores, in float32 (float64 for float64).

``backward`` takes ``out`` and ``lse`` of the attention over all keys, of which ``k`` and ``v`` may
be a part: probabilities are ``exp(scale * q k^T - lse)``, so the gradients of the parts add up.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Literal, NamedTuple

import torch


@dataclass(frozen=True)
class KernelOptions:
    """How a kernel attends.

    Attributes:
        scale: Factor of the scores.
        causal: Whether query i sees keys 0 to i only; there are as many queries as keys.
        deterministic: Whether the backward pass must be bitwise repeatable.
    """

    scale: float
    causal: bool = False
    deterministic: bool = False


class SavedTensors(NamedTuple):
    """What a backward pass needs of the forward pass.

    Attributes:
        q: ``[B, s, n, H]``.
        k: ``[B, t, m, H]``.
        v: ``[B, t, m, H]``.
        out: ``[B, s, n, H]``, the attention of q over all keys.
        lse: ``[B, s, n]``, its log-sum-exp.
    """

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    out: torch.Tensor
    lse: torch.Tensor


LocalAttention = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, KernelOptions],
    tuple[torch.Tensor, torch.Tensor | None],
]
"""(q, k, v, options) -> (out, lse). A kernel that computes no log-sum-exp returns None."""

LocalBackward = Callable[
    [torch.Tensor, SavedTensors, KernelOptions],
    tuple[torch.Tensor, torch.Tensor, torch.Tensor],
]
"""(grad_out, saved, options) -> (dq, dk, dv)."""


def torch_is_deterministic() -> bool:
    """Whether ``torch.use_deterministic_algorithms(True)`` is in force; warnings only is not."""
    warns_only = torch.is_deterministic_algorithms_warn_only_enabled()
    return torch.are_deterministic_algorithms_enabled() and not warns_only


@dataclass(frozen=True)
class KernelNeeds:
    """What a call requires of a kernel. The same on all ranks, so that all select the same kernel.

    Attributes:
        device: The device of the tensors.
        dtype: The dtype of q, k and v.
        head_size: H.
        log_sum_exp: Whether partial results are merged, which needs a log-sum-exp.
        backward: Whether a gradient is required.
        deterministic: Whether the backward pass must be bitwise repeatable.
        torch_deterministic: State of torch's global flag at the call, on which some kernels depend.
    """

    device: torch.device
    dtype: torch.dtype
    head_size: int
    log_sum_exp: bool
    backward: bool = False
    deterministic: bool = False
    torch_deterministic: bool = field(default_factory=torch_is_deterministic)


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
        has_log_sum_exp: Whether it returns a log-sum-exp, which merging needs.
        backward: Its backward pass with a given log-sum-exp; None if it has none.
        backward_refusal: Reason why the backward pass cannot run a call that the forward pass can,
            or None. Called when the device and the library are known to be there.
        repeatable: Whether the backward pass is bitwise repeatable: always or on request ("yes"),
            under ``torch.use_deterministic_algorithms(True)`` ("torch"), or never ("no"). On ROCm
            none is known to be.
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
    backward: LocalBackward | None = None
    backward_refusal: Callable[[KernelNeeds], str | None] = lambda needs: None
    repeatable: Literal["yes", "torch", "no"] = "no"

    def unsupported_reason(self, needs: KernelNeeds) -> str | None:
        """Why this kernel cannot run a call on this machine; None if it can."""
        if needs.backward and self.backward is None:
            return "has no backward pass with a given log-sum-exp"
        if needs.log_sum_exp and not self.has_log_sum_exp:
            return "returns no log-sum-exp, by which partial results merge"
        if self.device_type not in (None, needs.device.type):
            return f"runs on {self.device_type} only"
        if needs.dtype not in self.dtypes:
            return f"takes {', '.join(str(dtype).removeprefix('torch.') for dtype in self.dtypes)}"
        if needs.head_size % self.head_size_step:
            return f"takes head sizes that are multiples of {self.head_size_step}"
        if self.head_size_max is not None and needs.head_size > self.head_size_max:
            return f"takes head sizes up to {self.head_size_max}"
        return (
            self._determinism_refusal(needs)
            or self._device_refusal(needs.device)
            or self._module_refusal()
            or (self.backward_refusal(needs) if needs.backward else None)
        )

    def _determinism_refusal(self, needs: KernelNeeds) -> str | None:
        if not (needs.backward and needs.deterministic):
            return None
        if needs.device.type == "cuda" and torch.version.hip is not None:
            return "is not known to be repeatable in its backward pass on ROCm"
        if self.repeatable == "no":
            return "is not repeatable in its backward pass"
        if self.repeatable == "torch" and not needs.torch_deterministic:
            return "is repeatable under torch.use_deterministic_algorithms(True) only"
        return None

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
        return None if self.module is None else import_failure(self.module, self.install)


@cache
def import_failure(module: str, install: str) -> str | None:
    """Why a library cannot be used: it is not installed, or its import error; None if it can."""
    try:
        importlib.import_module(module)
    except (ImportError, OSError) as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing is not None and f"{module}.".startswith(f"{missing}."):
            return f"{module} is not installed ({install})"
        return f"{module} is installed but does not import ({error})"
    return None
