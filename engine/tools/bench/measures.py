"""What a rank measures of its device and of the links to the others; all ranks at one time, since
ranks that compute side by side share caches, memory and power."""

from __future__ import annotations

import gc
import importlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import psutil
import torch
import torch.distributed as dist
import torch.nn.functional as F

from longtake.configs.request import VideoRequest
from longtake.engine.request import resolve
from longtake.errors import KernelError
from longtake.parallel import KERNELS, KernelNeeds, ParallelDims, World, select_kernel
from longtake.parallel.exchange import all_to_all, swap_point_to_point
from longtake.parallel.kernels import attend
from longtake.pipelines import registry
from longtake.pipelines.checkpoint import Checkpoint
from longtake.pipelines.decode import decode_videos
from longtake.pipelines.rendering import RenderRun, render_latents
from longtake.pipelines.stages import StageReport

Json = dict[str, Any]

_SIZES: dict[str, dict[str, int]] = {
    "cpu": {
        "tokens": 2048,
        "width": 512,
        "heads": 4,
        "channels": 64,
        "frames": 4,
        "side": 64,
        "copied": 2**25,
        "sent": 2**24,
    },
    "cuda": {
        "tokens": 16384,
        "width": 3072,
        "heads": 24,
        "channels": 128,
        "frames": 16,
        "side": 256,
        "copied": 2**30,
        "sent": 2**27,
    },
}
"""Large enough that a device does what it does in a rendering; of copies and exchanges, bytes."""

_HOT_S = 2.0
"""For which a GPU computes attention, most of a step, before it is measured: with heads of 128 an
H100 does 678 TFLOP/s at first, and 624 once its clock has fallen to what 700 W allow."""

_SMALL_BYTES = 1024
_LAUNCHES = 1000


def everything(world: World, *, dtypes: list[str], head_size: int, rounds: int) -> Json:
    """All that a profile takes, by ranks that are started once.

    Args:
        dtypes: all but matrix products are measured in the first.

    Returns:
        ``startup_s`` until a rank could load; ``bytes`` as :func:`process`; ``rates`` by dtype;
        ``links``; ``overlap``, 1 where there is one rank.
    """
    importlib.import_module("longtake.pipelines.hunyuan_video.pipeline")
    startup_s = time.time() - psutil.Process().create_time()
    several = world.size > 1
    return {
        "startup_s": startup_s,
        "bytes": process(world, dtype=dtypes[0])["bytes"],
        "rates": {
            dtype: rates(
                world,
                dtype=dtype,
                head_size=head_size,
                rounds=rounds,
                products_only=dtype != dtypes[0],
            )
            for dtype in dtypes
        },
        "links": links(world, rounds=rounds) if several else [],
        "overlap": overlap(world, dtype=dtypes[0], head_size=head_size, rounds=rounds)
        if several
        else 1.0,
    }


def rates(
    world: World, *, dtype: str, head_size: int, rounds: int, products_only: bool = False
) -> Json:
    """How fast this device is while all others work, too.

    Args:
        head_size: of the attention.
        products_only: measure ``linear`` alone.

    Returns:
        ``linear``, ``attention`` and ``convolution`` in floating-point operations a second,
        ``memory`` in bytes a second, ``launch_s``.
    """
    device, sizes = world.device, _SIZES[world.device.type]
    kind: torch.dtype = getattr(torch, dtype)
    tokens, width = sizes["tokens"], sizes["width"]
    x = torch.randn(tokens, width, device=device, dtype=kind)
    weight = torch.randn(4 * width, width, device=device, dtype=kind)
    with torch.no_grad():
        linear_s = _median_s(lambda: F.linear(x, weight), world, rounds)
    found = {"linear": 2 * tokens * width * 4 * width / linear_s}
    if products_only:
        return found
    return {**found, **_other_rates(world, kind, head_size, rounds)}


def _other_rates(world: World, dtype: torch.dtype, head_size: int, rounds: int) -> Json:
    device, sizes = world.device, _SIZES[world.device.type]
    tokens, heads = sizes["tokens"], sizes["heads"]
    q, k, v = torch.randn(3, 1, tokens, heads, head_size, device=device, dtype=dtype)
    channels, frames, side = sizes["channels"], sizes["frames"], sizes["side"]
    padded = (1, channels, frames + 2, side + 2, side + 2)
    cubes = torch.randn(padded, device=device, dtype=dtype)
    kernel3d = torch.randn(channels, channels, 3, 3, 3, device=device, dtype=dtype)
    ones = torch.ones(sizes["copied"] // dtype.itemsize, device=device, dtype=dtype)
    twos, tiny = torch.empty_like(ones), torch.zeros(8, device=device, dtype=dtype)
    kernel = select_kernel("auto", KernelNeeds(device, dtype, head_size, log_sum_exp=True))
    whole = [(slice(None), slice(None))]

    def launches() -> None:
        for _ in range(_LAUNCHES):
            tiny.add_(1)

    with torch.no_grad():
        attention_s = _median_s(
            lambda: attend(kernel, q, k, v, head_size**-0.5, whole), world, rounds, hot=True
        )
        convolution_s = _median_s(lambda: F.conv3d(cubes, kernel3d), world, rounds)
        memory_s = _median_s(lambda: torch.add(ones, 1, out=twos), world, rounds)
        launches_s = _median_s(launches, world, rounds)
    out = frames * side * side
    return {
        "attention": 4 * tokens * tokens * heads * head_size / attention_s,
        "convolution": 2 * 27 * channels * channels * out / convolution_s,
        "memory": 2 * sizes["copied"] / memory_s,
        "launch_s": launches_s / _LAUNCHES,
    }


def links(world: World, *, rounds: int) -> list[Json]:
    """All-to-alls and ring hops over the first 2, 4, 8, ... ranks and all of them.

    Returns:
        For each number of ranks ``ranks``, ``exchange_bytes_per_s`` and ``hop_bytes_per_s`` that
        each rank sends, ``latency_s`` of a small exchange; on ranks that take part.
    """
    counts = sorted({*(2**n for n in range(1, 16) if 2**n < world.size), world.size} - {1})
    found = []
    for count in counts:
        mesh = ParallelDims(ulysses_degree=count).build_mesh(
            world.device.type, ranks=list(range(count)), timeout_s=world.timeout_s
        )
        if world.rank < count:
            group = mesh.get_group("ulysses")
            exchange = _exchange_s(world, group, _SIZES[world.device.type]["sent"], rounds)
            small = _exchange_s(world, group, _SMALL_BYTES * count, rounds)
            hop = _hop_s(world, group, _SIZES[world.device.type]["sent"], rounds)
            sent = _SIZES[world.device.type]["sent"]
            found.append(
                {
                    "ranks": count,
                    "exchange_bytes_per_s": sent
                    * (count - 1)
                    / count
                    / max(exchange - small, 1e-9),
                    "hop_bytes_per_s": sent / max(hop - small, 1e-9),
                    "latency_s": small,
                }
            )
    return found


def overlap(world: World, *, dtype: str, head_size: int, rounds: int) -> float:
    """The part of a ring hop that goes on while this rank computes attention: 0 to 1."""
    device, sizes = world.device, _SIZES[world.device.type]
    kind: torch.dtype = getattr(torch, dtype)
    q, k, v = torch.randn(
        3, 1, sizes["tokens"], sizes["heads"], head_size, device=device, dtype=kind
    )
    kernel = select_kernel("auto", KernelNeeds(device, kind, head_size, log_sum_exp=True))
    group = world.group
    assert group is not None
    sent, received = (torch.empty(sizes["sent"], dtype=torch.uint8, device=device) for _ in "ab")

    def compute() -> None:
        attend(kernel, q, k, v, head_size**-0.5, [(slice(None), slice(None))])

    def hop() -> Callable[[], None]:
        rank, size = world.rank, world.size
        return swap_point_to_point(
            [(sent, (rank + 1) % size)], [(received, (rank - 1) % size)], group
        )

    def both() -> None:
        wait = hop()
        compute()
        wait()

    with torch.no_grad():
        computing = _median_s(compute, world, rounds)
        hopping = _median_s(lambda: hop()(), world, rounds)
        together = _median_s(both, world, rounds)
    hidden = computing + hopping - together
    return max(0.0, min(1.0, hidden / min(computing, hopping)))


def process(world: World, *, dtype: str) -> Json:
    """What a rank holds beside its weights: ``bytes``, once it has rendered a little."""
    alone, checkpoint = World(world.device), Checkpoint.open("demo")
    spec = registry.inspect(checkpoint)
    request = resolve(VideoRequest(prompt="red", num_inference_steps=1, seed=0), spec)
    kind: torch.dtype = getattr(torch, dtype)
    pipeline = registry.load(checkpoint, alone, dtype=kind)
    latents = render_latents(RenderRun(pipeline, request, ParallelDims(), alone))
    decoder = pipeline.decoder(request)
    decode_videos(decoder, latents, alone, StageReport(), lambda video, index, frame: None)
    gc.collect()
    weights = spec.costs.transformer_parameters + sum(spec.costs.other_parameters.values())
    if world.device.type == "cuda":
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info(world.device)
        return {"bytes": total - free - weights * kind.itemsize}
    return {"bytes": psutil.Process().memory_info().rss - weights * kind.itemsize}


def kernels(world: World, *, dtype: str, head_size: int, rounds: int) -> Json:
    """Each local attention kernel: operations a second, or why it cannot run."""
    device, sizes = world.device, _SIZES[world.device.type]
    kind: torch.dtype = getattr(torch, dtype)
    tokens, heads = sizes["tokens"], sizes["heads"]
    q, k, v = torch.randn(3, 1, tokens, heads, head_size, device=device, dtype=kind)
    found: Json = {}
    for kernel in KERNELS:
        try:
            select_kernel(kernel.name, KernelNeeds(device, kind, head_size, log_sum_exp=False))
        except KernelError:
            found[kernel.name] = kernel.refusal(KernelNeeds(device, kind, head_size, False))
            continue

        def run(kernel: Any = kernel) -> None:
            attend(kernel, q, k, v, head_size**-0.5, [(slice(None), slice(None))])

        with torch.no_grad():
            seconds = _median_s(run, world, rounds)
        found[kernel.name] = 4 * tokens * tokens * heads * head_size / seconds
    return found


def _exchange_s(world: World, group: dist.ProcessGroup, size: int, rounds: int) -> float:
    """An all-to-all in which each rank sends so many bytes in all, its own share included."""
    count = dist.get_world_size(group)
    shares = [size // count] * count
    sent, received = (
        torch.zeros(sum(shares), dtype=torch.uint8, device=world.device) for _ in "ab"
    )
    return _median_s(
        lambda: all_to_all(received, sent, shares, shares, group), world, rounds, group
    )


def _hop_s(world: World, group: dist.ProcessGroup, size: int, rounds: int) -> float:
    count, rank = dist.get_world_size(group), dist.get_rank(group)
    sent, received = (torch.zeros(size, dtype=torch.uint8, device=world.device) for _ in "ab")

    def hop() -> None:
        swap_point_to_point([(sent, (rank + 1) % count)], [(received, (rank - 1) % count)], group)()

    return _median_s(hop, world, rounds, group)


def _median_s(
    function: Callable[[], Any],
    world: World,
    rounds: int,
    group: dist.ProcessGroup | None = None,
    *,
    hot: bool = False,
) -> float:
    """The median of some rounds that all ranks begin together, after one that does not count.

    Args:
        hot: after as much of it as brings a GPU to its power limit; it must exchange nothing.
    """
    seconds = []
    if hot and world.device.type == "cuda":
        _heat(function, world)
    for number in range(rounds + 1):
        dist.barrier(group)
        _finish(world)
        begun = time.perf_counter()
        function()
        _finish(world)
        if number > 0:
            seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds)


def _heat(function: Callable[[], Any], world: World) -> None:
    """Keep this rank's GPU at work until its clock has fallen to what its power allows."""
    begun = time.perf_counter()
    while time.perf_counter() - begun < _HOT_S:
        function()
        _finish(world)


def _finish(world: World) -> None:
    if world.device.type == "cuda":
        torch.cuda.synchronize()
