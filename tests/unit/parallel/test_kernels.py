"""Local attention kernels: parity on the CPU, forward and backward, and their selection."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from longtake.errors import KernelError
from longtake.parallel import KERNELS, Kernel, KernelNeeds, select_kernel
from longtake.parallel.kernels import kernel as kernel_module
from longtake.parallel.kernels.attend import HeadRuns, attend, attend_backward
from longtake.parallel.kernels.kernel import KernelOptions, SavedTensors, import_failure
from tests import reference_attention as reference
from tests.libraries import libraries

CPU = torch.device("cpu")
CUDA = torch.device("cuda", 0)
BY_NAME = {kernel.name: kernel for kernel in KERNELS}
CPU_FLASH = BY_NAME["cpu-flash"]
TOLERANCES = {
    torch.float32: 1e-5,
    torch.float64: 1e-12,
    torch.bfloat16: 2e-2,
    torch.float16: 5e-3,
}
UNEVEN: HeadRuns = [(slice(0, 1), slice(0, 1)), (slice(1, 3), slice(1, 2))]
"""3 query heads that read KV heads 0, 1 and 1."""


def tensors(
    heads: tuple[int, int] = (6, 2),
    dtype: torch.dtype = torch.float32,
    head_size: int = 16,
    num_queries: int = 7,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """q, k and v of 11 tokens as views of one buffer, as they come out of an all-to-all."""
    torch.manual_seed(0)
    num_heads, num_kv_heads = heads
    rows = torch.randn(11, 2, num_heads + 2 * num_kv_heads, head_size).to(dtype).transpose(0, 1)
    q, k, v = rows.split([num_heads, num_kv_heads, num_kv_heads], dim=2)
    return q[:, :num_queries], k, v


def whole(num_heads: int, num_kv_heads: int) -> HeadRuns:
    """All heads in one run."""
    return [(slice(0, num_heads), slice(0, num_kv_heads))]


def assert_close(actual: Any, expected: Any, tolerance: float) -> None:
    """Compare tensors with others in float64."""
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", ["cpu-flash", "sdpa"])
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("heads", [(6, 2), (4, 4), (3, 1), (1, 1)])
@pytest.mark.parametrize("head_size", [1, 5, 16])
@pytest.mark.parametrize("causal", [False, True])
def test_cpu_kernels_match_the_reference(
    name: str, dtype: torch.dtype, heads: tuple[int, int], head_size: int, causal: bool
) -> None:
    q, k, v = tensors(heads, dtype, head_size, num_queries=11 if causal else 7)
    options = KernelOptions(0.3, causal)
    out, lse = BY_NAME[name].run(q, k, v, options)
    expected, expected_lse = reference.attention(q, k, v, options)
    assert out.dtype == dtype
    assert_close([out], [expected], TOLERANCES[dtype])
    if BY_NAME[name].has_log_sum_exp:
        assert lse is not None and lse.dtype == torch.promote_types(dtype, torch.float32)
        assert_close([lse], [expected_lse], max(TOLERANCES[dtype], 1e-5))
    else:
        assert lse is None


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("heads", [(6, 2), (4, 4), (3, 1), (1, 1)])
@pytest.mark.parametrize("causal", [False, True])
def test_backward_of_the_cpu_kernel_matches_autograd(
    dtype: torch.dtype, heads: tuple[int, int], causal: bool
) -> None:
    for head_size in (1, 5, 16):
        q, k, v = tensors(heads, dtype, head_size, num_queries=11 if causal else 7)
        options = KernelOptions(0.3, causal)
        grad_out = torch.randn(q.shape).to(dtype)
        out, lse = CPU_FLASH.run(q, k, v, options)
        assert lse is not None and CPU_FLASH.backward is not None
        actual = CPU_FLASH.backward(grad_out, SavedTensors(q, k, v, out, lse), options)
        assert [grad.dtype for grad in actual] == [dtype] * 3
        expected = reference.gradients(grad_out, q, k, v, options)
        assert_close(actual, expected, 5 * TOLERANCES[dtype])


@pytest.mark.parametrize("heads", [(6, 2), (4, 4)])
def test_parts_of_the_keys_add_up_to_the_gradients(heads: tuple[int, int]) -> None:
    """Each part gets the output and the log-sum-exp over all keys, as in a ring."""
    q, k, v = tensors(heads)
    options, runs, grad_out = KernelOptions(0.3), whole(*heads), torch.randn(q.shape)
    out, lse = attend(CPU_FLASH, q, k, v, options, runs)
    assert lse is not None
    parts = [
        attend_backward(
            CPU_FLASH,
            grad_out,
            SavedTensors(q, k[:, part], v[:, part], out, lse),
            options,
            runs,
        )
        for part in (slice(0, 1), slice(1, 8), slice(8, 11))
    ]
    dq, dk, dv = zip(*parts, strict=True)
    actual = torch.stack(dq).sum(0), torch.cat(dk, dim=1), torch.cat(dv, dim=1)
    assert_close(actual, reference.gradients(grad_out, q, k, v, options), 1e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_backward_of_the_cpu_kernel_is_repeatable(causal: bool) -> None:
    torch.manual_seed(0)
    q, k, v, grad_out = torch.randn(4, 1, 700, 2, 32)
    options = KernelOptions(0.2, causal, deterministic=True)
    out, lse = CPU_FLASH.run(q, k, v, options)
    assert lse is not None and CPU_FLASH.backward is not None
    saved = SavedTensors(q, k, v, out, lse)
    first, second = (CPU_FLASH.backward(grad_out, saved, options) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("causal", [False, True])
def test_attend_accepts_uneven_groups_of_heads(causal: bool) -> None:
    q, k, v = tensors((3, 2), num_queries=11)
    options, grad_out = KernelOptions(0.3, causal), torch.randn(q.shape)
    each = k[:, :, [0, 1, 1]], v[:, :, [0, 1, 1]]
    for kernel in (CPU_FLASH, BY_NAME["sdpa"]):
        out, lse = attend(kernel, q, k, v, options, UNEVEN)
        expected, expected_lse = reference.attention(q, *each, options)
        assert_close([out], [expected], 1e-5)
        assert (lse is not None) == kernel.has_log_sum_exp
        if lse is not None:
            assert_close([lse], [expected_lse], 1e-5)
            saved = SavedTensors(q, k, v, out, lse)
            actual = attend_backward(kernel, grad_out, saved, options, UNEVEN)
            dq, dk, dv = reference.gradients(grad_out, q, *each, options)
            dk, dv = (torch.stack([d[:, :, 0], d[:, :, 1:].sum(2)], dim=2) for d in (dk, dv))
            assert_close(actual, [dq, dk, dv], 1e-5)


def explode(*args: object) -> Any:
    raise AssertionError("called")


@pytest.mark.parametrize("shape", [(2, 0, 6, 16), (2, 7, 0, 16), (0, 7, 6, 16)])
def test_attend_calls_no_kernel_for_an_empty_tensor(shape: tuple[int, ...]) -> None:
    kernel = Kernel("explode", explode, None, (torch.float32,), backward=explode)
    q, options = torch.zeros(shape), KernelOptions(1.0)
    out, lse = attend(kernel, q, q[:, :0], q[:, :0], options, [])
    assert out.shape == shape and lse is not None and lse.shape == shape[:3]
    k = torch.full((shape[0], 5, 3, 16), torch.nan)
    gradients = attend_backward(kernel, q, SavedTensors(q, k, k, out, lse), options, [])
    assert [grad.shape for grad in gradients] == [q.shape, k.shape, k.shape]
    assert all(bool((grad == 0).all()) for grad in gradients)


def test_attend_accepts_a_head_dimension_that_is_not_contiguous() -> None:
    q, k, v = (t.transpose(2, 3).contiguous().transpose(2, 3) for t in tensors((2, 2)))
    grad_out = torch.randn(*q.shape[:2], 16, 2).transpose(2, 3)
    assert q.stride(-1) != 1 and grad_out.stride(-1) != 1
    options, runs = KernelOptions(0.3), whole(2, 2)
    out, lse = attend(CPU_FLASH, q, k, v, options, runs)
    assert lse is not None
    assert_close([out], [reference.attention(q, k, v, options)[0]], 1e-5)
    out = out.transpose(2, 3).contiguous().transpose(2, 3)

    def checked(grad_out: torch.Tensor, saved: SavedTensors, options: KernelOptions) -> Any:
        assert all(tensor.stride(-1) == 1 for tensor in (grad_out, *saved[:4]))
        assert CPU_FLASH.backward is not None
        return CPU_FLASH.backward(grad_out, saved, options)

    kernel = replace(CPU_FLASH, backward=checked)
    actual = attend_backward(kernel, grad_out, SavedTensors(q, k, v, out, lse), options, runs)
    assert_close(actual, reference.gradients(grad_out, q, k, v, options), 1e-5)


def needs(
    device: torch.device = CPU,
    dtype: torch.dtype = torch.bfloat16,
    head_size: int = 128,
    **others: bool,
) -> KernelNeeds:
    """The requirements of a call."""
    return KernelNeeds(device, dtype, head_size, **{"log_sum_exp": True, **others})


def training(device: torch.device, deterministic: bool = False, **others: Any) -> KernelNeeds:
    """The requirements of a call whose gradients are required."""
    return needs(device, backward=True, deterministic=deterministic, **others)


def test_auto_selects_cpu_flash_on_a_cpu() -> None:
    assert select_kernel("auto", needs()).name == "cpu-flash"
    assert select_kernel("sdpa", needs(log_sum_exp=False)).name == "sdpa"
    assert select_kernel("auto", training(CPU, deterministic=True)).name == "cpu-flash"


def test_unsupported_reason_states_the_requirement() -> None:
    for kernel in KERNELS:
        refusal = kernel.unsupported_reason(needs())
        assert (refusal is None) == (kernel.name == "cpu-flash")
    assert BY_NAME["sdpa"].unsupported_reason(needs()) == (
        "returns no log-sum-exp, by which partial results merge"
    )
    assert CPU_FLASH.unsupported_reason(needs(dtype=torch.int64)) == (
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


def test_a_kernel_without_a_backward_pass_is_refused_with_those_that_have_one() -> None:
    with pytest.raises(KernelError) as caught:
        select_kernel("sdpa", training(CPU, log_sum_exp=False))
    assert str(caught.value) == (
        "kernel='sdpa' cannot run a backward pass of torch.bfloat16 with head size 128 on cpu: "
        "has no backward pass with a given log-sum-exp: try one of auto, cpu-flash"
    )
    with pytest.raises(KernelError, match="cannot run a repeatable backward pass of torch.bfloat1"):
        select_kernel("sdpa", training(CPU, deterministic=True, log_sum_exp=False))


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Report a Hopper GPU and a recent cuDNN. Tests may change what is reported."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91600)
    select_kernel.cache_clear()
    import_failure.cache_clear()
    yield monkeypatch
    select_kernel.cache_clear()
    import_failure.cache_clear()


def report(cuda: pytest.MonkeyPatch, *capability: int) -> None:
    """Report another compute capability."""
    cuda.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    select_kernel.cache_clear()


def test_auto_on_a_gpu_without_libraries(cuda: pytest.MonkeyPatch) -> None:
    assert select_kernel("auto", needs(CUDA)).name == "sdpa-cudnn"
    assert select_kernel("auto", needs(CUDA, head_size=256)).name == "sdpa-flash"
    assert select_kernel("auto", needs(CUDA, dtype=torch.float32)).name == "sdpa-efficient"
    assert select_kernel("auto", needs(CUDA, head_size=12, log_sum_exp=False)).name == "sdpa"
    report(cuda, 8, 0)
    assert select_kernel("auto", needs(CUDA)).name == "sdpa-flash"
    with pytest.raises(KernelError, match=r"needs compute capability \(9, 0\) or later"):
        select_kernel("sdpa-cudnn", needs(CUDA))
    cuda.setattr(torch.version, "hip", "6.4")
    select_kernel.cache_clear()
    with pytest.raises(KernelError, match="does not run on ROCm: try one of auto, sdpa-flash"):
        select_kernel("sdpa-cudnn", needs(CUDA))


def test_auto_prefers_libraries_that_can_be_imported(cuda: pytest.MonkeyPatch) -> None:
    libraries(cuda, "flash_attn_interface", "flash_attn.cute.interface")
    assert select_kernel("auto", needs(CUDA)).name == "flash-attn-3"
    report(cuda, 10, 0)
    assert select_kernel("auto", needs(CUDA)).name == "flash-attn-4"
    report(cuda, 12, 0)
    assert select_kernel("auto", needs(CUDA)).name == "sdpa-cudnn"


def test_each_kernel_says_whether_its_backward_pass_exists_and_repeats(
    cuda: pytest.MonkeyPatch,
) -> None:
    names = ("flash_attn_interface", "flash_attn.flash_attn_interface", "flash_attn.cute.interface")
    for module in libraries(cuda, *names, "xformers.ops.fmha"):
        module._flash_attn_backward = lambda dout, cu_seqlens_q, softmax_scale: None  # type: ignore[attr-defined]

    def able(needs: KernelNeeds) -> set[str]:
        return {kernel.name for kernel in KERNELS if kernel.unsupported_reason(needs) is None}

    on_request = {"flash-attn-4", "flash-attn-2", "sdpa-efficient"}
    not_repeatable = {"flash-attn-3", "sdpa-cudnn", "xformers"}
    assert able(training(CUDA)) == {*on_request, *not_repeatable, "sdpa-flash"}
    assert able(training(CUDA, deterministic=True)) == on_request
    flag = replace(training(CUDA, deterministic=True), torch_deterministic=True)
    assert able(flag) == {*on_request, "sdpa-flash"}
    cuda.setattr(torch.version, "hip", "6.4")
    assert able(training(CUDA)) == {"flash-attn-2", "sdpa-flash", "sdpa-efficient"}
    assert able(flag) == set()
    assert able(training(CPU, deterministic=True)) == {"cpu-flash"}


def test_the_selection_follows_torchs_flag(cuda: pytest.MonkeyPatch) -> None:
    """A selection is remembered, but not beyond a change of the flag."""
    cuda.setattr(kernel_module, "import_failure", lambda module, install: "is not installed")
    report(cuda, 8, 0)
    refused = (
        r"is repeatable under torch.use_deterministic_algorithms\(True\) only: "
        "try one of auto, sdpa-efficient$"
    )
    try:
        for state in ("unset", "warns only", "set", "unset"):
            torch.use_deterministic_algorithms(state != "unset", warn_only=state == "warns only")
            call = training(CUDA, deterministic=True)
            if state == "set":
                assert select_kernel("sdpa-flash", call).name == "sdpa-flash"
            else:
                with pytest.raises(KernelError, match=refused):
                    select_kernel("sdpa-flash", call)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("version", [None, 91002, 91500])
def test_an_old_cudnn_is_refused_in_the_backward_pass(
    cuda: pytest.MonkeyPatch, version: int | None
) -> None:
    cuda.setattr(torch.backends.cudnn, "version", lambda: version)
    assert select_kernel("sdpa-cudnn", needs(CUDA)).name == "sdpa-cudnn"
    assert select_kernel("auto", training(CUDA)).name == "sdpa-flash"
    with pytest.raises(KernelError, match=f"needs cuDNN 9.15.1 or later .* torch has {version}"):
        select_kernel("sdpa-cudnn", training(CUDA))


def test_head_sizes_without_a_flash_backward_pass(cuda: pytest.MonkeyPatch) -> None:
    for capability in [(8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)]:
        report(cuda, *capability)
        for head_size in (192, 200, 224, 232, 256):
            gap = head_size in (200, 224) and capability in [(8, 6), (8, 9), (12, 0)]
            selected = select_kernel("auto", training(CUDA, head_size=head_size)).name
            assert selected == ("sdpa-efficient" if gap else "sdpa-flash")
    with pytest.raises(KernelError, match="no backward pass of head sizes 193 to 224 on capabil"):
        select_kernel("sdpa-flash", training(CUDA, head_size=224))


def test_a_beta_of_flash_attn_3_is_refused_in_the_backward_pass(cuda: pytest.MonkeyPatch) -> None:
    (module,) = libraries(cuda, "flash_attn_interface")
    module._flash_attn_backward = (  # type: ignore[attr-defined]
        lambda dout, q, k, v, out, softmax_lse, dq, dk, dv, softmax_scale, causal: None
    )
    assert select_kernel("flash-attn-3", needs(CUDA)).name == "flash-attn-3"
    with pytest.raises(KernelError, match="is a beta of 2024, whose backward pass is not support"):
        select_kernel("flash-attn-3", training(CUDA))


def test_a_missing_or_broken_library_is_named_in_the_error(
    cuda: pytest.MonkeyPatch, tmp_path: pytest.TempPathFactory
) -> None:
    missing = r"flash_attn.flash_attn_interface is not installed \(pip install 'longtake"
    with pytest.raises(KernelError, match=missing):
        select_kernel("flash-attn-2", needs(CUDA))
    libraries(cuda, "flash_attn.cute.interface")  # flash-attn-4 is in the same namespace
    import_failure.cache_clear()
    with pytest.raises(KernelError, match=missing):
        select_kernel("flash-attn-2", needs(CUDA))
    cuda.undo()
    cuda.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    (tmp_path / "flash_attn.py").write_text("import a_symbol_that_is_missing\n")  # type: ignore[operator]
    cuda.syspath_prepend(tmp_path)
    import_failure.cache_clear()
    with pytest.raises(
        KernelError, match="interface is installed but does not import .*a_symbol_that_is_missing"
    ):
        select_kernel("flash-attn-2", needs(CUDA))
