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
from longtake.parallel.kernels.kernel import KernelOptions
from tests.ranks import RankGroup, random_tensors

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

TOLERANCE = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 2e-2}
CALLS = list(product(TOLERANCE, [(4, 4), (6, 2), (3, 1)], [64, 128, 256]))


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
@pytest.mark.parametrize(("dtype", "heads", "head_size"), CALLS)
def test_kernel_equals_its_definition(
    kernel: Kernel, dtype: torch.dtype, heads: tuple[int, int], head_size: int
) -> None:
    needs = KernelNeeds(torch.device("cuda", 0), dtype, head_size, log_sum_exp=False)
    refusal = kernel.unsupported_reason(needs)
    if refusal is not None:
        pytest.skip(refusal)
    num_heads, num_kv_heads = heads
    (rows,) = random_tensors(0, [(333, 2, num_heads + 2 * num_kv_heads, head_size)], dtype)
    q, k, v = rows.cuda().transpose(0, 1).split([num_heads, num_kv_heads, num_kv_heads], dim=2)
    out, lse = kernel.run(q[:, :200], k, v, KernelOptions(0.1))

    k, v = (t.double().repeat_interleave(num_heads // num_kv_heads, dim=2) for t in (k, v))
    scores = torch.einsum("bsnh,btnh->bsnt", q[:, :200].double(), k) * 0.1
    expected = torch.einsum("bsnt,btnh->bsnh", scores.softmax(-1), v)
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=TOLERANCE[dtype])
    assert (lse is not None) == kernel.has_log_sum_exp
    if lse is not None:
        assert lse.dtype == torch.float32
        torch.testing.assert_close(
            lse.double(), scores.logsumexp(-1), rtol=0, atol=TOLERANCE[dtype]
        )


@pytest.fixture(scope="module")
def gpus() -> Iterator[RankGroup]:
    """One rank per GPU, over NCCL."""
    group = RankGroup(
        torch.cuda.device_count(), device_type="cuda", grace_s=60.0, warnings_are="ignore"
    )
    yield group
    group.close()


def check_on_gpus(num_tokens: int, heads: tuple[int, int], ring_degree: int) -> None:
    """On one rank: compare one call over all GPUs with attention on one."""
    world_size, device = dist.get_world_size(), torch.device("cuda", dist.get_rank())
    dims = ParallelDims(ring_degree=ring_degree, ulysses_degree=world_size // ring_degree)
    mesh = dims.build_mesh("cuda")
    shards = TokenShards.even(num_tokens, dims)
    shapes = [(2, num_tokens, n, 64) for n in (heads[0], heads[1], heads[1])]
    q, k, v = (t.to(device) for t in random_tensors(0, shapes, torch.bfloat16))
    out = usp_attention(*(shards.split(t, mesh, 1) for t in (q, k, v)), mesh=mesh, shards=shards)
    q, k, v = (tensor.float().transpose(1, 2) for tensor in (q, k, v))
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    whole = shards.gather(out, mesh, dim=1).float()
    torch.testing.assert_close(whole, expected.transpose(1, 2), rtol=0, atol=2e-2)


@pytest.mark.parametrize("num_tokens", [1, 13, 1009])
@pytest.mark.parametrize("heads", [(3, 1), (24, 24)])
def test_attention_across_gpus(gpus: RankGroup, num_tokens: int, heads: tuple[int, int]) -> None:
    world_size = torch.cuda.device_count()
    for ring_degree in range(1, world_size + 1):
        if world_size % ring_degree == 0:
            gpus.run(check_on_gpus, num_tokens, heads, ring_degree)
