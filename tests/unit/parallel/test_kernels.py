"""Local attention kernels: parity, selection, and adapters of kernels that need a GPU."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch

from longtake.errors import KernelError
from longtake.parallel import KERNELS, Kernel, KernelNeeds, select_kernel
from longtake.parallel.kernels.attend import attend
from longtake.parallel.kernels.kernel import KernelOptions, import_failure

CPU = torch.device("cpu")
CUDA = torch.device("cuda", 0)
BY_NAME = {kernel.name: kernel for kernel in KERNELS}


def reference(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention and log-sum-exp by their definition, in float64."""
    group_size = q.shape[2] // k.shape[2]
    k, v = (t.double().repeat_interleave(group_size, dim=2) for t in (k, v))
    scores = torch.einsum("bsnh,btnh->bsnt", q.double(), k) * scale
    return torch.einsum("bsnt,btnh->bsnh", scores.softmax(-1), v), scores.logsumexp(-1)


def tensors(
    heads: tuple[int, int] = (6, 2), dtype: torch.dtype = torch.float32, head_size: int = 16
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """q, k and v as views of one buffer, as they come out of an all-to-all."""
    torch.manual_seed(0)
    num_heads, num_kv_heads = heads
    rows = torch.randn(11, 2, num_heads + 2 * num_kv_heads, head_size).to(dtype).transpose(0, 1)
    q, k, v = rows.split([num_heads, num_kv_heads, num_kv_heads], dim=2)
    return q[:, :7], k, v


@pytest.mark.parametrize("name", ["cpu-flash", "sdpa"])
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [
        (torch.float32, 1e-5),
        (torch.float64, 1e-12),
        (torch.bfloat16, 2e-2),
        (torch.float16, 5e-3),
    ],
)
@pytest.mark.parametrize("heads", [(6, 2), (4, 4), (3, 1), (1, 1)])
@pytest.mark.parametrize("head_size", [1, 5, 16])
def test_cpu_kernels_match_the_reference(
    name: str, dtype: torch.dtype, tolerance: float, heads: tuple[int, int], head_size: int
) -> None:
    q, k, v = tensors(heads, dtype, head_size)
    out, lse = BY_NAME[name].run(q, k, v, KernelOptions(0.3))
    expected, expected_lse = reference(q, k, v, 0.3)
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=tolerance)
    if BY_NAME[name].has_log_sum_exp:
        assert lse is not None and lse.dtype == torch.promote_types(dtype, torch.float32)
        torch.testing.assert_close(lse.double(), expected_lse, rtol=0, atol=max(tolerance, 1e-5))
    else:
        assert lse is None


def test_attend_accepts_uneven_groups_of_heads() -> None:
    q, k, v = tensors((3, 2))
    runs = [(slice(0, 1), slice(0, 1)), (slice(1, 3), slice(1, 2))]
    for kernel in (BY_NAME["cpu-flash"], BY_NAME["sdpa"]):
        out, lse = attend(kernel, q, k, v, KernelOptions(0.3), runs)
        each = k[:, :, [0, 1, 1]], v[:, :, [0, 1, 1]]
        expected, expected_lse = reference(q, *each, 0.3)
        torch.testing.assert_close(out.double(), expected, rtol=0, atol=1e-5)
        assert (lse is not None) == kernel.has_log_sum_exp
        if lse is not None:
            torch.testing.assert_close(lse.double(), expected_lse, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 0, 6, 16), (2, 7, 0, 16), (0, 7, 6, 16)])
def test_attend_calls_no_kernel_for_an_empty_tensor(shape: tuple[int, ...]) -> None:
    def explode(*args: object) -> tuple[torch.Tensor, None]:
        raise AssertionError("called")

    kernel = Kernel("explode", explode, None, (torch.float32,))
    q = torch.zeros(shape)
    out, lse = attend(kernel, q, q[:, :0], q[:, :0], KernelOptions(1.0), [])
    assert out.shape == shape and lse is not None and lse.shape == shape[:3]


def test_attend_accepts_a_head_dimension_that_is_not_contiguous() -> None:
    q, k, v = (t.transpose(2, 3).contiguous().transpose(2, 3) for t in tensors((2, 2)))
    assert q.stride(-1) != 1
    out, _ = attend(BY_NAME["cpu-flash"], q, k, v, KernelOptions(0.3), [(slice(0, 2), slice(0, 2))])
    torch.testing.assert_close(out.double(), reference(q, k, v, 0.3)[0], rtol=0, atol=1e-5)


def needs(
    device: torch.device = CPU,
    dtype: torch.dtype = torch.bfloat16,
    head_size: int = 128,
    log_sum_exp: bool = True,
) -> KernelNeeds:
    """The requirements of a call."""
    return KernelNeeds(device, dtype, head_size, log_sum_exp)


def test_auto_selects_cpu_flash_on_a_cpu() -> None:
    assert select_kernel("auto", needs()).name == "cpu-flash"
    assert select_kernel("sdpa", needs(log_sum_exp=False)).name == "sdpa"


def test_unsupported_reason_states_the_requirement() -> None:
    for kernel in KERNELS:
        refusal = kernel.unsupported_reason(needs())
        assert (refusal is None) == (kernel.name == "cpu-flash")
    assert BY_NAME["sdpa"].unsupported_reason(needs()) == (
        "returns no log-sum-exp, by which partial results merge"
    )
    assert BY_NAME["cpu-flash"].unsupported_reason(needs(dtype=torch.int64)) == (
        "takes float16, bfloat16, float32, float64"
    )


def test_an_unusable_kernel_is_refused_with_the_usable_ones() -> None:
    with pytest.raises(KernelError) as caught:
        select_kernel("flash-attn-2", needs(log_sum_exp=False))
    assert str(caught.value) == (
        "kernel='flash-attn-2' cannot run torch.bfloat16 with head size 128 on cpu: "
        "runs on cuda only: try one of auto, cpu-flash, sdpa"
    )
    with pytest.raises(KernelError, match="there is no such kernel: try one of auto, cpu-flash$"):
        select_kernel("fastest", needs())
    with pytest.raises(KernelError, match="no kernel can run torch.int8 .*; sdpa returns no log"):
        select_kernel("auto", needs(dtype=torch.int8))


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Report a Hopper GPU. Tests may change the reported capability."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    select_kernel.cache_clear()
    import_failure.cache_clear()
    yield monkeypatch
    select_kernel.cache_clear()
    import_failure.cache_clear()


def libraries(monkeypatch: pytest.MonkeyPatch, **modules: ModuleType | None) -> None:
    """Install stand-ins of libraries for import; None stands for an empty module."""
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module or ModuleType(name))
        if module is not None:
            module.__spec__ = importlib.machinery.ModuleSpec(name, None)


def test_auto_on_a_gpu_without_libraries(cuda: pytest.MonkeyPatch) -> None:
    assert select_kernel("auto", needs(CUDA)).name == "sdpa-cudnn"
    assert select_kernel("auto", needs(CUDA, head_size=256)).name == "sdpa-flash"
    assert select_kernel("auto", needs(CUDA, dtype=torch.float32)).name == "sdpa-efficient"
    assert select_kernel("auto", needs(CUDA, head_size=12, log_sum_exp=False)).name == "sdpa"
    cuda.setattr(torch.cuda, "get_device_capability", lambda device=None: (8, 0))
    select_kernel.cache_clear()
    assert select_kernel("auto", needs(CUDA)).name == "sdpa-flash"
    with pytest.raises(KernelError, match=r"needs compute capability \(9, 0\) or later"):
        select_kernel("sdpa-cudnn", needs(CUDA))
    cuda.setattr(torch.version, "hip", "6.4")
    select_kernel.cache_clear()
    with pytest.raises(KernelError, match="does not run on ROCm: try one of auto, sdpa-flash"):
        select_kernel("sdpa-cudnn", needs(CUDA))


def test_auto_prefers_libraries_that_can_be_imported(cuda: pytest.MonkeyPatch) -> None:
    libraries(cuda, flash_attn_interface=ModuleType("flash_attn_interface"))
    assert select_kernel("auto", needs(CUDA)).name == "flash-attn-3"
    cuda.setattr(torch.cuda, "get_device_capability", lambda device=None: (10, 0))
    select_kernel.cache_clear()
    assert select_kernel("auto", needs(CUDA)).name == "sdpa-cudnn"


def test_a_missing_or_broken_library_is_named_in_the_error(
    cuda: pytest.MonkeyPatch, tmp_path: pytest.TempPathFactory
) -> None:
    with pytest.raises(KernelError, match=r"flash_attn is not installed \(pip install 'longtake"):
        select_kernel("flash-attn-2", needs(CUDA))
    (tmp_path / "flash_attn.py").write_text("import a_symbol_that_is_missing\n")  # type: ignore[operator]
    cuda.syspath_prepend(tmp_path)
    import_failure.cache_clear()
    with pytest.raises(
        KernelError, match="flash_attn is installed but does not import .*a_symbol_that_is_missing"
    ):
        select_kernel("flash-attn-2", needs(CUDA))


def run_adapter(name: str, heads: tuple[int, int]) -> None:
    """Compare a kernel's adapter, over a stand-in of its library, with the reference."""
    q, k, v = tensors(heads)
    out, lse = BY_NAME[name].run(q, k, v, KernelOptions(0.3))
    expected, expected_lse = reference(q, k, v, 0.3)
    assert lse is not None
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(lse.double(), expected_lse, rtol=0, atol=1e-5)


@pytest.mark.parametrize("heads", [(6, 2), (4, 4)])
def test_flash_attn_adapters(cuda: pytest.MonkeyPatch, heads: tuple[int, int]) -> None:
    flash_attn_2, flash_attn_3 = ModuleType("flash_attn"), ModuleType("flash_attn_interface")

    def attention(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        out, lse = reference(q, k, v, scale)
        return out.float(), lse.transpose(1, 2).float()  # [B, n, s], as they do

    def flash_attn_2_func(  # type: ignore[no-untyped-def]
        q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, return_attn_probs=False
    ):
        assert return_attn_probs and not causal
        return (*attention(q, k, v, softmax_scale), None)

    def early_flash_attn_3_func(q, k, v, softmax_scale=None, causal=False):  # type: ignore[no-untyped-def]
        return attention(q, k, v, softmax_scale)

    def later_flash_attn_3_func(q, k, v, softmax_scale=None, causal=False, return_attn_probs=False):  # type: ignore[no-untyped-def]
        out, lse = attention(q, k, v, softmax_scale)
        return (out, lse) if return_attn_probs else out

    flash_attn_2.flash_attn_func = flash_attn_2_func  # type: ignore[attr-defined]
    libraries(cuda, flash_attn=flash_attn_2, flash_attn_interface=flash_attn_3)
    run_adapter("flash-attn-2", heads)
    for function in (early_flash_attn_3_func, later_flash_attn_3_func):
        flash_attn_3.flash_attn_func = function  # type: ignore[attr-defined]
        run_adapter("flash-attn-3", heads)


@pytest.mark.parametrize("heads", [(6, 2), (4, 4)])
def test_xformers_adapter(cuda: pytest.MonkeyPatch, heads: tuple[int, int]) -> None:
    fmha = ModuleType("xformers.ops.fmha")

    def forward(q, k, v, scale):  # type: ignore[no-untyped-def]
        grouped = q.ndim == 5  # [B, s, m, n / m, H]
        assert grouped == (heads[0] != heads[1]) and k.shape[2:] == q.shape[2:]
        if grouped:
            q, k, v = (tensor.flatten(2, 3) for tensor in (q, k, v))
        out, lse = reference(q, k, v, scale)
        lse = torch.nn.functional.pad(lse.transpose(1, 2), (0, 5), value=torch.inf)
        if grouped:
            out = out.unflatten(2, (heads[1], -1))
            lse = lse.unflatten(1, (heads[1], -1))
        return out.float(), lse.float()

    fmha.memory_efficient_attention_forward_requires_grad = forward  # type: ignore[attr-defined]
    for name in ("xformers", "xformers.ops"):
        libraries(cuda, **{name: ModuleType(name)})
    libraries(cuda, **{"xformers.ops.fmha": fmha})
    run_adapter("xformers", heads)


@pytest.mark.parametrize("name", ["sdpa-flash", "sdpa-cudnn", "sdpa-efficient"])
def test_shapes_of_torch_cuda_operations(name: str) -> None:
    """On the meta device torch checks the call and computes the shapes without a GPU."""
    q = torch.empty(2, 37, 6, 64, dtype=torch.bfloat16, device="meta")
    k = v = torch.empty(2, 11, 3, 64, dtype=torch.bfloat16, device="meta")
    out, lse = BY_NAME[name].run(q, k, v, KernelOptions(0.3))
    assert out.shape == q.shape and out.dtype == q.dtype
    assert lse is not None and lse.shape == (2, 37, 6) and lse.dtype == torch.float32
