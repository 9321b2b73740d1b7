"""Kernels on CUDA against the definition of attention, and attention across GPUs over NCCL.

Run by ``make test-gpu`` on a machine with a GPU; `make test` leaves this folder out.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import pytest
import torch
import torch.distributed as dist

from longtake.parallel import KERNELS, Kernel, KernelNeeds, ParallelDims, TokenShards, usp_attention
from longtake.parallel.kernels.kernel import KernelOptions, SavedTensors, torch_is_deterministic
from tests import reference_attention as reference
from tests.ranks import RankGroup, random_tensors

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

TOLERANCE = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 2e-2}
"""Of the output, and of gradients as a share of the largest."""
CALLS = list(product(TOLERANCE, [(4, 4), (6, 2), (3, 1)], [64, 128, 256], [False, True]))
each_kernel = pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)


def skip_unless_able(
    kernel: Kernel, dtype: torch.dtype, head_size: int, deterministic: bool | None = None
) -> None:
    """Skip a kernel that cannot run a call here.

    Args:
        deterministic: Whether its backward pass must be repeatable; None if there is none.
    """
    needs = KernelNeeds(
        torch.device("cuda", 0),
        dtype,
        head_size,
        log_sum_exp=False,
        backward=deterministic is not None,
        deterministic=bool(deterministic),
    )
    refusal = kernel.unsupported_reason(needs)
    if refusal is not None:
        pytest.skip(refusal)


def operands(
    dtype: torch.dtype, heads: tuple[int, int], head_size: int, causal: bool, num_tokens: int = 333
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """q, k and v as views of one buffer, as they come out of an all-to-all, and grad_out."""
    num_heads, num_kv_heads = heads
    shapes = [(num_tokens, 2, num_heads + 2 * num_kv_heads, head_size)]
    num_queries = num_tokens if causal else num_tokens * 3 // 5
    shapes.append((num_queries, 2, num_heads, head_size))
    rows, grad_out = (t.cuda().transpose(0, 1) for t in random_tensors(0, shapes, dtype))
    q, k, v = rows.split([num_heads, num_kv_heads, num_kv_heads], dim=2)
    return q[:, :num_queries], k, v, grad_out


@each_kernel
@pytest.mark.parametrize(("dtype", "heads", "head_size", "causal"), CALLS)
def test_kernel_equals_its_definition(
    kernel: Kernel, dtype: torch.dtype, heads: tuple[int, int], head_size: int, causal: bool
) -> None:
    skip_unless_able(kernel, dtype, head_size)
    q, k, v, _ = operands(dtype, heads, head_size, causal)
    options = KernelOptions(0.1, causal)
    out, lse = kernel.run(q, k, v, options)
    expected, expected_lse = reference.attention(q, k, v, options)
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=TOLERANCE[dtype])
    assert (lse is not None) == kernel.has_log_sum_exp
    if lse is not None:
        assert lse.dtype == torch.float32
        torch.testing.assert_close(lse.double(), expected_lse, rtol=0, atol=TOLERANCE[dtype])


@each_kernel
@pytest.mark.parametrize(("dtype", "heads", "head_size", "causal"), CALLS)
def test_gradients_equal_their_definition(
    kernel: Kernel, dtype: torch.dtype, heads: tuple[int, int], head_size: int, causal: bool
) -> None:
    """Without a mask over three parts of the keys, with the output and log-sum-exp over all."""
    skip_unless_able(kernel, dtype, head_size, deterministic=False)
    assert kernel.backward is not None
    q, k, v, grad_out = operands(dtype, heads, head_size, causal)
    options = KernelOptions(0.1, causal)
    out, lse = kernel.run(q, k, v, options)
    assert lse is not None
    edges = [(0, None)] if causal else [(0, 1), (1, 200), (200, None)]
    parts = [
        kernel.backward(
            grad_out, SavedTensors(q, k[:, start:stop], v[:, start:stop], out, lse), options
        )
        for start, stop in edges
    ]
    dq, dk, dv = zip(*parts, strict=True)
    gradients = torch.stack(dq).double().sum(0), torch.cat(dk, dim=1), torch.cat(dv, dim=1)
    expected = reference.gradients(grad_out, q, k, v, options)
    for name, actual, exact in zip(("dq", "dk", "dv"), gradients, expected, strict=True):
        assert_near(name, actual, exact, TOLERANCE[dtype] * float(exact.abs().max()))


def assert_near(name: str, actual: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    """Compare with a tensor in float64."""
    torch.testing.assert_close(
        actual.double(), expected, rtol=0, atol=tolerance, msg=lambda text: f"{name}: {text}"
    )


@each_kernel
def test_short_blocks(kernel: Kernel) -> None:
    """Any number of queries and keys: a ring cuts sequences anywhere."""
    skip_unless_able(kernel, torch.bfloat16, 64, deterministic=False)
    assert kernel.backward is not None
    for num_queries, num_keys in product((1, 2, 31, 129), repeat=2):
        q, k, v, grad_out = operands(torch.bfloat16, (4, 2), 64, causal=True, num_tokens=129)
        q, grad_out, k, v = q[:, :num_queries], grad_out[:, :num_queries], k[:, -num_keys:], v
        v = v[:, -num_keys:]
        for causal in {False, num_queries == num_keys}:
            options = KernelOptions(0.1, causal)
            out, lse = kernel.run(q, k, v, options)
            assert lse is not None
            exact_out, exact_lse = reference.attention(q, k, v, options)
            assert_near("out", out, exact_out, 2e-2)
            assert_near("lse", lse, exact_lse, 2e-2)
            actual = kernel.backward(grad_out, SavedTensors(q, k, v, out, lse), options)
            expected = reference.gradients(grad_out, q, k, v, options)
            tolerance = 2e-2 * float(expected[2].abs().max())  # with one key dq and dk are 0
            for name, one, exact in zip(("dq", "dk", "dv"), actual, expected, strict=True):
                assert_near(name, one, exact, tolerance)


@each_kernel
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("heads", [(8, 8), (8, 2)])
def test_gradients_are_repeatable(kernel: Kernel, causal: bool, heads: tuple[int, int]) -> None:
    """Bitwise, in 20 runs of a shape in which many blocks add to the same gradients."""
    assert not torch_is_deterministic()
    torch.use_deterministic_algorithms(kernel.repeatable == "torch")
    try:
        skip_unless_able(kernel, torch.bfloat16, 128, deterministic=True)
        assert kernel.backward is not None
        q, k, v, grad_out = operands(torch.bfloat16, heads, 128, causal, num_tokens=4000)
        options = KernelOptions(128**-0.5, causal, deterministic=True)
        out, lse = kernel.run(q, k, v, options)
        assert lse is not None
        saved = SavedTensors(q, k, v, out, lse)
        first = kernel.backward(grad_out, saved, options)
        for _ in range(20):
            for one, other in zip(first, kernel.backward(grad_out, saved, options), strict=True):
                assert torch.equal(one, other)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="module")
def gpus() -> Iterator[RankGroup]:
    """One rank per GPU, over NCCL."""
    group = RankGroup(
        torch.cuda.device_count(), device_type="cuda", grace_s=60.0, warnings_are="ignore"
    )
    yield group
    group.close()


def check_on_gpus(num_tokens: int, heads: tuple[int, int], ring_degree: int, causal: bool) -> None:
    """On one rank: compare one call over all GPUs, and its gradients, with attention on one."""
    world_size, device = dist.get_world_size(), torch.device("cuda", dist.get_rank())
    dims = ParallelDims(ring_degree=ring_degree, ulysses_degree=world_size // ring_degree)
    mesh = dims.build_mesh("cuda")
    shards = (TokenShards.zigzag if causal else TokenShards.even)(num_tokens, dims)
    shapes = [(2, num_tokens, n, 64) for n in (heads[0], heads[1], heads[1], heads[0])]
    *qkv, grad_out = (t.to(device) for t in random_tensors(0, shapes, torch.bfloat16))
    q, k, v = (shards.split(t, mesh, 1).requires_grad_() for t in qkv)
    out = usp_attention(q, k, v, mesh=mesh, shards=shards, causal=causal)
    gradients = torch.autograd.grad(out, (q, k, v), shards.split(grad_out, mesh, 1))

    options = KernelOptions(64**-0.5, causal)
    q, k, v = qkv
    exact = [
        reference.attention(q, k, v, options)[0],
        *reference.gradients(grad_out, q, k, v, options),
    ]
    for name, actual, one in zip(
        ("out", "dq", "dk", "dv"), (out.detach(), *gradients), exact, strict=True
    ):
        largest = max(1.0, float(one.abs().max()))
        difference = (shards.gather(actual, mesh, dim=1).float() - one).abs().max()
        assert float(difference) <= 2e-2 * largest, f"{name}: {float(difference):.1e} of {largest}"


@pytest.mark.parametrize("num_tokens", [1, 13, 1009])
@pytest.mark.parametrize("heads", [(3, 1), (24, 24)])
@pytest.mark.parametrize("causal", [False, True])
def test_attention_across_gpus(
    gpus: RankGroup, num_tokens: int, heads: tuple[int, int], causal: bool
) -> None:
    world_size = torch.cuda.device_count()
    for ring_degree in range(1, world_size + 1):
        if world_size % ring_degree == 0:
            gpus.run(check_on_gpus, num_tokens, heads, ring_degree, causal)
