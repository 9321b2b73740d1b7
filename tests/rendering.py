"""Functions that ranks run in the tests of whole renderings, with a tiny model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from benchmarks.traffic import TrafficMeter
from longtake.configs.fields.weights import WeightPlace, WeightStorage
from longtake.configs.request import ResolvedDecode, ResolvedRequest
from longtake.configs.snapshot import SnapshotConfig
from longtake.engine.media.pictures.picture import noise_pictures
from longtake.parallel import ParallelDims, World
from longtake.pipelines import registry
from longtake.pipelines.codec.decode import TileRun, decode_videos
from longtake.pipelines.codec.picture import Pixels
from longtake.pipelines.family import VideoPipeline
from longtake.pipelines.loading.checkpoint import Checkpoint
from longtake.pipelines.loading.plan import ComponentPlan, LoadPlan
from longtake.pipelines.loading.tensor_source import SafetensorsSource
from longtake.pipelines.lora.match import Deltas
from longtake.pipelines.runtime.render_run import RenderRun
from longtake.pipelines.runtime.rendering import render_latents
from longtake.pipelines.runtime.snapshots import LoopState, Snapshots
from longtake.pipelines.runtime.stages import StageReport
from longtake.pipelines.runtime.stepper import Step
from tests import tiny

ALONE = World(torch.device("cpu"))
ONE_RANK = ParallelDims()

Array = npt.NDArray[np.float32]


def request(**changes: Any) -> ResolvedRequest:
    """A small resolved request."""
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
    """A small resolved image-to-video request."""
    settings: dict[str, Any] = dict(
        i2v_mode="stable",
        resize_mode="stretch",
        prompt_template=tiny.IMAGE_TEMPLATE,
    )
    return request(**{**settings, **changes})


def first_step() -> Step:
    """The first step of a schedule."""
    return Step(0, torch.tensor(1000.0), 1000.0)


@cache
def world() -> World:
    """All ranks of this process's group."""
    group = dist.group.WORLD
    return World(torch.device("cpu"), group, group, timeout_s=60.0)


@lru_cache(maxsize=6)
def load_pipeline(
    folder: str,
    on_ranks: bool,
    dtype: str = "float32",
    place: WeightPlace = "resident",
    storage: WeightStorage | None = None,
) -> VideoPipeline:
    """Load a model; the last six of a process are kept."""
    return load_on(world() if on_ranks else ALONE, folder, dtype, place, storage)


def load_on(
    ranks: World,
    folder: str,
    dtype: str,
    place: WeightPlace,
    storage: WeightStorage | None = None,
    loras: Mapping[str, Deltas] | None = None,
) -> VideoPipeline:
    """Load a model on given ranks, with what LoRAs add to its transformers.

    A file transformer.gguf in its folder is its transformer.
    """
    plan = LoadPlan.resident(getattr(torch, dtype))
    transformer = ComponentPlan(plan.transformer.dtype, place, storage, loras or {})
    plan = replace(plan, transformer=transformer)
    blocks = Path(folder) / "transformer.gguf"
    parts = {"transformer": blocks} if blocks.exists() else {}
    return registry.load(Checkpoint.open(folder, parts=parts), ranks, plan)


def pictures_of(pipeline: VideoPipeline, resolved: ResolvedRequest) -> dict[str, Pixels]:
    """Pictures of noise: those that the model needs, and those whose digest the request gives."""
    spec = pipeline.spec
    names = [
        name
        for name in spec.pictures
        if name in spec.required_pictures or getattr(resolved, f"{name}_sha256") is not None
    ]
    return noise_pictures(resolved, names)


def render(
    pipeline: VideoPipeline, resolved: ResolvedRequest, dims: ParallelDims, world: World
) -> torch.Tensor:
    """The latents of a request, with pictures of noise."""
    pictures = pictures_of(pipeline, resolved)
    return render_latents(RenderRun(pipeline, resolved, dims, world, pictures=pictures))


def decode(
    pipeline: VideoPipeline,
    latents: torch.Tensor,
    resolved: ResolvedDecode,
    world: World,
    dropped_frames: int = 0,
) -> Array:
    """The frames of all videos, ``[B, frames, height, width, 3]``; empty on ranks other than 0."""
    frames: list[torch.Tensor] = []

    def take(video: int, index: int, frame: torch.Tensor) -> None:
        assert (video, index) == divmod(len(frames), resolved.num_frames - dropped_frames)
        frames.append(frame.clone())

    decoder = pipeline.codec.decoder(resolved)
    decode_videos(TileRun(decoder, latents, world), take, dropped_frames=dropped_frames)
    if world.rank != 0:
        assert not frames
        return np.zeros((0,), dtype=np.float32)
    array: Array = torch.stack(frames).unflatten(0, (len(latents), -1)).numpy()
    return array


def frames_on_one_rank(folder: str, resolved: ResolvedRequest) -> Array:
    """The frames of all videos of a request, rendered in this process."""
    pipeline = load_pipeline(folder, False)
    return decode(pipeline, render(pipeline, resolved, ONE_RANK, ALONE), resolved, ALONE)


def latents_on_one_rank(
    folder: str,
    resolved: ResolvedRequest,
    dtype: str = "float32",
    place: WeightPlace = "resident",
    storage: WeightStorage | None = None,
) -> Array:
    """The latents of a request, rendered in this process."""
    pipeline = load_pipeline(folder, False, dtype, place, storage)
    latents: Array = render(pipeline, resolved, ONE_RANK, ALONE).numpy()
    return latents


def latents_on_ranks(
    folder: str,
    resolved: list[ResolvedRequest],
    dims: ParallelDims,
    dtype: str = "float32",
    place: WeightPlace = "resident",
    storage: WeightStorage | None = None,
) -> list[Array]:
    """On a rank: the latents of each request."""
    pipeline = load_pipeline(folder, True, dtype, place, storage)
    return [render(pipeline, each, dims, world()).numpy() for each in resolved]


def denoiser_bytes(folder: str, place: WeightPlace, storage: WeightStorage | None = None) -> int:
    """On a rank: bytes of the transformer's parameters on this rank."""
    denoiser = load_pipeline(folder, True, place=place, storage=storage).denoiser
    return sum(
        (each.to_local() if isinstance(each, DTensor) else each).nbytes
        for each in denoiser.parameters()
    )


def traffic(
    folder: str, resolved: ResolvedRequest, dims: ParallelDims, place: WeightPlace
) -> tuple[int, dict[str, int], dict[str, int]]:
    """On a rank: bytes sent and calls of torch.distributed, and bytes by stage of the report."""
    pipeline, report = load_pipeline(folder, True, place=place), StageReport()
    with TrafficMeter() as meter:
        pictures = pictures_of(pipeline, resolved)
        render_latents(RenderRun(pipeline, resolved, dims, world(), report, pictures=pictures))
    return meter.bytes_sent, dict(meter.calls), report.bytes_sent


def count_weights_read(folder: str, ranks_per_host: int) -> tuple[int, bool]:
    """On a rank: the number of tensors read from disk, with ``ranks_per_host`` ranks per host, and
    whether the loaded weights are correct. Text encoders, which only rank 0 loads, do not count."""
    own = None
    for first in range(0, world().size, ranks_per_host):
        ranks = list(range(first, min(first + ranks_per_host, world().size)))
        group = dist.new_group(ranks)
        own = group if world().rank in ranks else own
    hosts = replace(world(), host_group=own)
    reads, read = [], SafetensorsSource.read

    def counted(source: SafetensorsSource, name: str, rows: slice | None = None) -> torch.Tensor:
        if not Path(source.label).name.startswith("text_encoder"):
            reads.append(name)
        return read(source, name, rows)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SafetensorsSource, "read", counted)
        checkpoint = Checkpoint.open(folder)
        pipeline = registry.load(checkpoint, hosts, LoadPlan.resident(torch.float32))
    ours, theirs = (each.denoiser.state_dict() for each in (pipeline, load_pipeline(folder, False)))
    same = all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    return len(reads), same


def communication_order(folder: str, dims: ParallelDims) -> list[str]:
    """On a rank with sharded weights: all-gathers and all-to-alls of one step, in order."""
    pipeline = load_pipeline(folder, True, place="split")
    with TrafficMeter() as meter:
        render(pipeline, request(num_inference_steps=1), dims, world())
    return [name for name in meter.order if "gather" in name or "alltoall" in name]


def _rendered(
    folder: str,
    resolved: ResolvedRequest,
    dims: ParallelDims,
    on_ranks: bool,
    place: WeightPlace,
    **options: Any,
) -> Array:
    """The latents of a request that saves snapshots or resumes."""
    pipeline = load_pipeline(folder, on_ranks, place=place)
    ranks = world() if on_ranks else ALONE
    run = RenderRun(
        pipeline,
        resolved,
        dims,
        ranks,
        pictures=pictures_of(pipeline, resolved),
        **options,
    )
    latents = render_latents(run)
    array: Array = latents.numpy()
    return array


def snapshot_states(
    folder: str,
    resolved: ResolvedRequest,
    dims: ParallelDims,
    on_ranks: bool,
    place: WeightPlace = "resident",
) -> tuple[Array, list[LoopState]]:
    """The latents of a request and, on rank 0, the snapshot of each step."""
    states: list[LoopState] = []
    snapshots = Snapshots(SnapshotConfig(snapshot_steps=1), 1, states.append)
    latents = _rendered(folder, resolved, dims, on_ranks, place, snapshots=snapshots)
    snapshots.close()
    return latents, states


def resume(
    folder: str,
    resolved: ResolvedRequest,
    dims: ParallelDims,
    state: LoopState,
    on_ranks: bool = True,
    place: WeightPlace = "resident",
) -> Array:
    """The latents of a request that resumes from a state, which only rank 0 receives."""
    first = not on_ranks or world().rank == 0
    options = {"steps_done": state.steps_done, "state": state if first else None}
    return _rendered(folder, resolved, dims, on_ranks, place, **options)
