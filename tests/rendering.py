"""What a rank does in the tests of whole renderings: load a tiny model once, render with it."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from benchmarks.traffic import TrafficMeter
from longtake.configs.request import ResolvedDecode, ResolvedRequest
from longtake.configs.snapshot import SnapshotConfig
from longtake.engine.media.pictures.picture import noise_picture
from longtake.parallel import ParallelDims, World
from longtake.pipelines import registry, weights
from longtake.pipelines.base import LoadOptions, VideoPipeline
from longtake.pipelines.checkpoint import Checkpoint
from longtake.pipelines.decode import DecodeRun, decode_videos
from longtake.pipelines.rendering import RenderRun, render_latents
from longtake.pipelines.snapshots import LoopState, Snapshots
from longtake.pipelines.stages import StageReport
from longtake.pipelines.weights import held_bytes
from tests import tiny

ALONE = World(torch.device("cpu"))
ONE_RANK = ParallelDims()

Array = npt.NDArray[np.float32]


def request(**changes: Any) -> ResolvedRequest:
    """A small request with nothing left out."""
    settings: dict[str, Any] = dict(
        prompt="a cat walks on the grass, slowly",
        height=32,
        width=48,
        num_frames=9,
        num_inference_steps=3,
        guidance_scale=6.0,
        flow_shift=7.0,
        seed=3,
        fps=8.0,
        decode="tiled",
        decode_tile_size=(16, 256, 256),
        decode_tile_stride=(12, 192, 192),
        prompt_template=tiny.TEMPLATE,
        max_sequence_length=tiny.MAX_TOKENS,
    )
    return ResolvedRequest(**{**settings, **changes})


def image_request(**changes: Any) -> ResolvedRequest:
    """A small request of image-to-video."""
    settings: dict[str, Any] = dict(
        i2v_mode="stable",
        resize_mode="stretch",
        prompt_template=tiny.IMAGE_TEMPLATE,
    )
    return request(**{**settings, **changes})


@cache
def world() -> World:
    """All ranks of the group that this process is in."""
    group = dist.group.WORLD
    return World(torch.device("cpu"), group, group, timeout_s=60.0)


@cache
def loaded(
    folder: str, on_ranks: bool, dtype: str = "float32", shard_weights: bool = False
) -> VideoPipeline:
    """A model, loaded once a process."""
    return registry.load(
        Checkpoint.open(folder),
        world() if on_ranks else ALONE,
        LoadOptions(getattr(torch, dtype), shard_weights=shard_weights),
    )


def render(
    pipeline: VideoPipeline, asked: ResolvedRequest, dims: ParallelDims, world: World
) -> torch.Tensor:
    """The latents of a request; of one that begins with a picture, any."""
    picture = noise_picture(asked)
    return render_latents(RenderRun(pipeline, asked, dims, world, picture=picture))


def decode(
    pipeline: VideoPipeline,
    latents: torch.Tensor,
    asked: ResolvedDecode,
    world: World,
    dropped_frames: int = 0,
) -> Array:
    """The frames of all videos, ``[B, frames, height, width, 3]``; on other ranks than 0 none."""
    frames: list[torch.Tensor] = []

    def take(video: int, index: int, frame: torch.Tensor) -> None:
        assert (video, index) == divmod(len(frames), asked.num_frames - dropped_frames)
        frames.append(frame.clone())

    decoder = pipeline.decoder(asked)
    decode_videos(DecodeRun(decoder, latents, world, take, dropped_frames=dropped_frames))
    if world.rank != 0:
        assert not frames
        return np.zeros((0,), dtype=np.float32)
    array: Array = torch.stack(frames).unflatten(0, (len(latents), -1)).numpy()
    return array


def frames_of_one(folder: str, asked: ResolvedRequest) -> Array:
    """The frames of all videos of a request, rendered in this process."""
    pipeline = loaded(folder, False)
    return decode(pipeline, render(pipeline, asked, ONE_RANK, ALONE), asked, ALONE)


def latents_of_one(folder: str, asked: ResolvedRequest, dtype: str = "float32") -> Array:
    """The latents of a request, rendered in this process."""
    latents: Array = render(loaded(folder, False, dtype), asked, ONE_RANK, ALONE).numpy()
    return latents


def latents_on_ranks(
    folder: str,
    asked: list[ResolvedRequest],
    dims: ParallelDims,
    dtype: str = "float32",
    shard_weights: bool = False,
) -> list[Array]:
    """On a rank: the latents of each request."""
    pipeline = loaded(folder, True, dtype, shard_weights)
    return [render(pipeline, each, dims, world()).numpy() for each in asked]


def bytes_held(folder: str, shard_weights: bool) -> int:
    """On a rank: bytes of the transformer's parameters that it holds."""
    return held_bytes(loaded(folder, True, shard_weights=shard_weights).denoiser)


def traffic(
    folder: str, asked: ResolvedRequest, dims: ParallelDims, shard_weights: bool
) -> tuple[int, dict[str, int], dict[str, int]]:
    """On a rank: bytes and calls that torch.distributed was given, and what the report says."""
    pipeline, report = loaded(folder, True, shard_weights=shard_weights), StageReport()
    with TrafficMeter() as meter:
        picture = noise_picture(asked)
        render_latents(RenderRun(pipeline, asked, dims, world(), report, picture=picture))
    return meter.bytes_sent, dict(meter.calls), report.bytes_sent


def files_read(folder: str, ranks_a_host: int) -> tuple[int, bool]:
    """On a rank: tensors read from disk where so many ranks share a host, but for those of the text
    encoders, which rank 0 alone has; whether all are right."""
    own = None
    for first in range(0, world().size, ranks_a_host):
        ranks = list(range(first, min(first + ranks_a_host, world().size)))
        group = dist.new_group(ranks)
        own = group if world().rank in ranks else own
    hosts = replace(world(), host_group=own)
    reads, read = [], weights._read

    def counted(file: Any, name: str, files: Any) -> torch.Tensor:
        if not files[0].parent.name.startswith("text_encoder"):
            reads.append(name)
        return read(file, name, files)

    weights._read = counted
    try:
        checkpoint = Checkpoint.open(folder)
        pipeline = registry.load(checkpoint, hosts, LoadOptions(torch.float32))
    finally:
        weights._read = read
    ours, theirs = (each.denoiser.state_dict() for each in (pipeline, loaded(folder, False)))
    same = all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    return len(reads), same


def order_of_fetches(folder: str, dims: ParallelDims) -> list[str]:
    """On a rank with split weights: all-gathers and all-to-alls of one step, as they are begun."""
    pipeline = loaded(folder, True, shard_weights=True)
    with TrafficMeter() as meter:
        render(pipeline, request(num_inference_steps=1), dims, world())
    return [name for name in meter.order if "gather" in name or "alltoall" in name]


def _rendered(
    folder: str, asked: ResolvedRequest, dims: ParallelDims, on_ranks: bool, **going: Any
) -> Array:
    """The latents of a request that is kept on its way, or goes on."""
    pipeline, ranks = loaded(folder, on_ranks), world() if on_ranks else ALONE
    run = RenderRun(pipeline, asked, dims, ranks, picture=noise_picture(asked), **going)
    latents = render_latents(run)
    array: Array = latents.numpy()
    return array


def states_of(
    folder: str, asked: ResolvedRequest, dims: ParallelDims, on_ranks: bool
) -> tuple[Array, list[LoopState]]:
    """The latents of a request, and, on rank 0, the state after each step as a snapshot has it."""
    states: list[LoopState] = []
    kept = Snapshots(SnapshotConfig(snapshot_steps=1), 1, states.append)
    latents = _rendered(folder, asked, dims, on_ranks, snapshots=kept)
    kept.close()
    return latents, states


def gone_on(
    folder: str, asked: ResolvedRequest, dims: ParallelDims, state: LoopState, on_ranks: bool = True
) -> Array:
    """The latents of a request that goes on from a state, which rank 0 alone is given."""
    first = not on_ranks or world().rank == 0
    going = {"steps_done": state.steps_done, "state": state if first else None}
    return _rendered(folder, asked, dims, on_ranks, **going)
