"""Measurements of a rank's device and of its links to other ranks.

All ranks measure at the same time, since ranks on one machine share caches, memory and power.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psutil
import torch
import torch.distributed as dist
import torch.nn.functional as F

from longtake.configs.request import VideoRequest
from longtake.engine.memory_use import resident_bytes
from longtake.engine.resolve.request import resolve
from longtake.parallel import KERNELS, Kernel, KernelNeeds, ParallelDims, World, select_kernel
from longtake.parallel.exchange import all_to_all, start_send_recv
from longtake.parallel.kernels.attend import attend
from longtake.parallel.kernels.kernel import KernelOptions
from longtake.pipelines import registry
from longtake.pipelines.codec.decode import TileRun, decode_videos
from longtake.pipelines.loading.checkpoint import Checkpoint
from longtake.pipelines.loading.plan import LoadPlan
from longtake.pipelines.runtime.render_run import RenderRun
from longtake.pipelines.runtime.rendering import render_latents

Json = dict[str, Any]


@dataclass(frozen=True)
class _Sizes:
    """Problem sizes, large enough that a device is as busy as in a rendering.

    Attributes:
        tokens: Tokens of attention, and rows of a matrix product.
        width: Width of the model; a matrix product has 4 times as many columns.
        heads: Attention heads.
        channels: Channels of a convolution.
        frames: Frames of a convolution.
        side: Height and width of a convolution.
        copied_bytes: Bytes of a copy.
        sent_bytes: Bytes that each rank sends in an exchange.
    """

    tokens: int
    width: int
    heads: int
    channels: int
    frames: int
    side: int
    copied_bytes: int
    sent_bytes: int


_SIZES = {
    "cpu": _Sizes(2048, 512, 4, 64, 4, 64, copied_bytes=2**25, sent_bytes=2**24),
    "cuda": _Sizes(16384, 3072, 24, 128, 16, 256, copied_bytes=2**30, sent_bytes=2**27),
}

_WARM_UP_S = 2.0
"""How long a GPU computes attention, most of a step, before it is measured: with heads of 128 an
H100 reaches 678 TFLOP/s at first, and 624 once its clock has fallen to what 700 W allow."""

_SMALL_BYTES = 1024
_LATENCY_ROUNDS = 15
"""Rounds of small exchanges at least: they are quick, and one alone is mostly noise."""

_LAUNCHES = 1000
_WHOLE = [(slice(None), slice(None))]
"""The one block of attention from all queries to all keys."""


def profile(world: World, *, dtypes: list[str], head_size: int, rounds: int) -> Json:
    """All measurements of a hardware profile.

    Args:
        world: All ranks.
        dtypes: Dtypes of matrix products; everything else is measured in the first.
        head_size: Head size of attention.
        rounds: Rounds whose median counts.

    Returns:
        ``startup_s`` and ``bytes`` as :func:`runtime`; ``rates`` by dtype; ``links``; ``overlap``,
        which is 1 for a single rank.
    """
    several, main = world.size > 1, dtypes[0]
    return {
        **runtime(world, dtype=main),
        "rates": {
            dtype: rates(
                world, dtype=dtype, head_size=head_size, rounds=rounds, products_only=dtype != main
            )
            for dtype in dtypes
        },
        "links": links(world, rounds=rounds) if several else [],
        "overlap": overlap(world, dtype=main, head_size=head_size, rounds=rounds)
        if several
        else 1.0,
    }


def rates(
    world: World, *, dtype: str, head_size: int, rounds: int, products_only: bool = False
) -> Json:
    """Speed of this device while all others work, too.

    Args:
        world: All ranks.
        dtype: Dtype of the operands.
        head_size: Head size of attention.
        rounds: Rounds whose median counts.
        products_only: Whether to measure only ``linear``.

    Returns:
        ``linear``, ``attention`` and ``convolution`` in floating-point operations per second,
        ``memory`` in bytes per second, and ``launch_s``.
    """
    torch_dtype: torch.dtype = getattr(torch, dtype)
    with torch.no_grad():
        products = {"linear": _linear_rate(world, torch_dtype, rounds)}
        if products_only:
            return products
        return {
            **products,
            "attention": _attention_rate(world, torch_dtype, head_size, rounds),
            "convolution": _convolution_rate(world, torch_dtype, rounds),
            "memory": _memory_rate(world, torch_dtype, rounds),
            "launch_s": _launch_s(world, torch_dtype, rounds),
        }


def _linear_rate(world: World, dtype: torch.dtype, rounds: int) -> float:
    """Operations per second of a matrix product."""
    device, sizes = world.device, _SIZES[world.device.type]
    tokens, width = sizes.tokens, sizes.width
    x = torch.randn(tokens, width, device=device, dtype=dtype)
    weight = torch.randn(4 * width, width, device=device, dtype=dtype)
    return 2 * tokens * width * 4 * width / _median_s(lambda: F.linear(x, weight), world, rounds)


def _attention_rate(world: World, dtype: torch.dtype, head_size: int, rounds: int) -> float:
    """Operations per second of the local attention kernel that a ring uses."""
    compute, operations = _attention(world, dtype, head_size)
    return operations / _median_s(compute, world, rounds, warm_up=True)


def _attention(
    world: World, dtype: torch.dtype, head_size: int
) -> tuple[Callable[[], object], float]:
    """A function that computes attention with the kernel of a ring, and its operations."""
    device, sizes = world.device, _SIZES[world.device.type]
    q, k, v = torch.randn(3, 1, sizes.tokens, sizes.heads, head_size, device=device, dtype=dtype)
    kernel = select_kernel("auto", KernelNeeds(device, dtype, head_size, log_sum_exp=True))
    return lambda: attend(kernel, q, k, v, KernelOptions(head_size**-0.5), _WHOLE), _operations(
        sizes, head_size
    )


def _operations(sizes: _Sizes, head_size: int) -> float:
    """Floating-point operations of attention."""
    return 4 * sizes.tokens * sizes.tokens * sizes.heads * head_size


def _convolution_rate(world: World, dtype: torch.dtype, rounds: int) -> float:
    """Operations per second of a 3 x 3 x 3 convolution."""
    device, sizes = world.device, _SIZES[world.device.type]
    channels, frames, side = sizes.channels, sizes.frames, sizes.side
    padded = (1, channels, frames + 2, side + 2, side + 2)
    x = torch.randn(padded, device=device, dtype=dtype)
    weight = torch.randn(channels, channels, 3, 3, 3, device=device, dtype=dtype)
    seconds = _median_s(lambda: F.conv3d(x, weight), world, rounds)
    return 2 * 27 * channels * channels * frames * side * side / seconds


def _memory_rate(world: World, dtype: torch.dtype, rounds: int) -> float:
    """Bytes per second that are read and written."""
    copied_bytes = _SIZES[world.device.type].copied_bytes
    source = torch.ones(copied_bytes // dtype.itemsize, device=world.device, dtype=dtype)
    target = torch.empty_like(source)
    seconds = _median_s(lambda: torch.add(source, 1, out=target), world, rounds)
    return 2 * copied_bytes / seconds


def _launch_s(world: World, dtype: torch.dtype, rounds: int) -> float:
    """Seconds of an operation that does next to nothing."""
    tiny = torch.zeros(8, device=world.device, dtype=dtype)

    def launches() -> None:
        for _ in range(_LAUNCHES):
            tiny.add_(1)

    return _median_s(launches, world, rounds) / _LAUNCHES


def links(world: World, *, rounds: int) -> list[Json]:
    """All-to-alls and ring hops over the first 2, 4, 8, ... ranks and all of them.

    Returns:
        For each number of ranks, on the ranks that take part: ``ranks``; ``exchange_bytes_per_s``
        and ``hop_bytes_per_s``, which each rank sends; ``latency_s`` of a small exchange.
    """
    counts = sorted({*(2**n for n in range(1, 16) if 2**n < world.size), world.size} - {1})
    measured = []
    for count in counts:
        mesh = ParallelDims(ulysses_degree=count).build_mesh(
            world.device.type, ranks=list(range(count)), timeout_s=world.timeout_s
        )
        if world.rank < count:
            measured.append(_link(world, mesh.get_group("ulysses"), count, rounds))
    return measured


def _link(world: World, group: dist.ProcessGroup, count: int, rounds: int) -> Json:
    """The measurements of one group of ranks."""
    sent_bytes = _SIZES[world.device.type].sent_bytes
    exchange_s = _exchange_s(world, group, sent_bytes, rounds)
    latency_s = _exchange_s(world, group, _SMALL_BYTES * count, max(rounds, _LATENCY_ROUNDS))
    hop_s = _hop_s(world, group, sent_bytes, rounds)
    leaving_bytes = sent_bytes * (count - 1) / count
    return {
        "ranks": count,
        "exchange_bytes_per_s": leaving_bytes / transfer_s(exchange_s, latency_s),
        "hop_bytes_per_s": sent_bytes / transfer_s(hop_s, latency_s),
        "latency_s": latency_s,
    }


def transfer_s(seconds: float, latency_s: float) -> float:
    """The part of a large message's time that is not latency.

    At least half of it: where the measured latency is longer, it is noise.
    """
    return max(seconds - latency_s, seconds / 2)


def overlap(world: World, *, dtype: str, head_size: int, rounds: int) -> float:
    """The share of a ring hop, 0 to 1, that proceeds while this rank computes attention."""
    sent_bytes = _SIZES[world.device.type].sent_bytes
    compute, _ = _attention(world, getattr(torch, dtype), head_size)
    group = world.group
    assert group is not None
    sent, received = (torch.empty(sent_bytes, dtype=torch.uint8, device=world.device) for _ in "ab")

    def hop() -> Callable[[], None]:
        rank, size = world.rank, world.size
        return start_send_recv([(sent, (rank + 1) % size)], [(received, (rank - 1) % size)], group)

    def both() -> None:
        wait = hop()
        compute()
        wait()

    with torch.no_grad():
        compute_s = _median_s(compute, world, rounds)
        hop_s = _median_s(lambda: hop()(), world, rounds)
        both_s = _median_s(both, world, rounds)
    hidden_s = compute_s + hop_s - both_s
    return max(0.0, min(1.0, hidden_s / min(compute_s, hop_s)))


def runtime(world: World, *, dtype: str) -> Json:
    """Startup time and memory of a rank, apart from its weights.

    Returns:
        ``startup_s`` from the start of the process until it loads its first weights, and ``bytes``
        in use apart from them, after a short rendering.
    """
    alone, checkpoint = World(world.device), Checkpoint.open("demo")
    spec = registry.inspect(checkpoint)
    request = resolve(VideoRequest(prompt="red", num_inference_steps=1, seed=0), spec)
    torch_dtype: torch.dtype = getattr(torch, dtype)
    loads_at: list[float] = []
    pipeline = registry.load(
        checkpoint,
        alone,
        LoadPlan.resident(torch_dtype),
        on_component=lambda name: loads_at.append(time.time()),
    )
    latents = render_latents(RenderRun(pipeline, request, ParallelDims(), alone))
    decoder = pipeline.codec.decoder(request)
    decode_videos(TileRun(decoder, latents, alone), lambda video, index, frame: None)
    gc.collect()
    costs = spec.costs_of(request)
    parameters = costs.transformer_parameters + sum(costs.other_parameters.values())
    return {
        "startup_s": loads_at[0] - psutil.Process().create_time(),
        "bytes": _used_bytes(world.device) - parameters * torch_dtype.itemsize,
    }


def _used_bytes(device: torch.device) -> int:
    """Memory in use on the GPU, or by this process."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info(device)
        return total - free
    return resident_bytes()


def kernels(world: World, *, dtype: str, head_size: int, rounds: int) -> Json:
    """Operations per second of each local attention kernel, or why it cannot run."""
    device, sizes = world.device, _SIZES[world.device.type]
    torch_dtype: torch.dtype = getattr(torch, dtype)
    q, k, v = torch.randn(
        3, 1, sizes.tokens, sizes.heads, head_size, device=device, dtype=torch_dtype
    )
    needs = KernelNeeds(device, torch_dtype, head_size, log_sum_exp=False)
    measured: Json = {}
    for kernel in KERNELS:
        if refusal := kernel.unsupported_reason(needs):
            measured[kernel.name] = refusal
            continue

        def run(kernel: Kernel = kernel) -> None:
            attend(kernel, q, k, v, KernelOptions(head_size**-0.5), _WHOLE)

        with torch.no_grad():
            seconds = _median_s(run, world, rounds)
        measured[kernel.name] = _operations(sizes, head_size) / seconds
    return measured


def _exchange_s(world: World, group: dist.ProcessGroup, size: int, rounds: int) -> float:
    """Seconds of an all-to-all.

    Args:
        size: Bytes per rank, including those it keeps.
    """
    count = dist.get_world_size(group)
    shares = [size // count] * count
    sent, received = (
        torch.zeros(sum(shares), dtype=torch.uint8, device=world.device) for _ in "ab"
    )
    return _median_s(
        lambda: all_to_all(received, sent, shares, shares, group), world, rounds, group
    )


def _hop_s(world: World, group: dist.ProcessGroup, size: int, rounds: int) -> float:
    """Seconds of sending this many bytes to the next rank of a ring."""
    count, rank = dist.get_world_size(group), dist.get_rank(group)
    sent, received = (torch.zeros(size, dtype=torch.uint8, device=world.device) for _ in "ab")

    def hop() -> None:
        start_send_recv([(sent, (rank + 1) % count)], [(received, (rank - 1) % count)], group)()

    return _median_s(hop, world, rounds, group)


def _median_s(
    function: Callable[[], Any],
    world: World,
    rounds: int,
    group: dist.ProcessGroup | None = None,
    *,
    warm_up: bool = False,
) -> float:
    """Median seconds of a function over rounds that all ranks begin together.

    The first of ``rounds + 1`` rounds does not count.

    Args:
        group: The ranks that begin together; None: all.
        warm_up: Whether to bring a GPU to its power limit first; the function must not communicate.
    """
    seconds = []
    if warm_up and world.device.type == "cuda":
        _warm_up(function, world)
    for number in range(rounds + 1):
        dist.barrier(group)
        _synchronize(world)
        started_at = time.perf_counter()
        function()
        _synchronize(world)
        if number > 0:
            seconds.append(time.perf_counter() - started_at)
    return statistics.median(seconds)


def _warm_up(function: Callable[[], Any], world: World) -> None:
    """Keep this rank's GPU busy until its clock has fallen to what its power limit allows."""
    started_at = time.perf_counter()
    while time.perf_counter() - started_at < _WARM_UP_S:
        function()
        _synchronize(world)


def _synchronize(world: World) -> None:
    if world.device.type == "cuda":
        torch.cuda.synchronize()
