"""What one rank executes, whoever started it: load the model, render, report."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from longtake.configs.engine import EngineConfig
from longtake.configs.request import ResolvedRequest
from longtake.engine.job import Job, RankReport
from longtake.engine.media.snapshot import kept_on_the_way, state_to_go_on_from
from longtake.errors import (
    EngineError,
    KernelError,
    LayoutError,
    ModelError,
    RequestError,
    one_line,
)
from longtake.parallel import KernelNeeds, ParallelDims, World, select_kernel
from longtake.pipelines import registry
from longtake.pipelines.checkpoint import Checkpoint
from longtake.pipelines.decode import check_fits, decode_videos
from longtake.pipelines.progress import OnProgress, Progress
from longtake.pipelines.rendering import RenderRun, render_latents
from longtake.pipelines.snapshots import Snapshots
from longtake.pipelines.spec import ModelSpec
from longtake.pipelines.stages import StageReport
from longtake.pipelines.trace import Trace, TracePoint

Array = npt.NDArray[np.float32]
Beside = npt.NDArray[Any] | None
"""What comes with a job: latents, ``[B, C, F, H, W]`` in float32, or a picture, ``[H, W, 3]`` in
uint8; None with most."""

_LONGEST_WAIT = timedelta(days=1)

REFUSED_BY_ALL = (RequestError, LayoutError, KernelError)
"""What all ranks refuse alike, since they look at the same; another refusal may be of one rank."""


class Sink(Protocol):
    """Where a rendering goes."""

    def latents(self, latents: Array) -> None:
        """Take the latents of all videos, ``[B, C, F, H, W]``."""

    def frame(self, video: int, index: int, frame: Array) -> None:
        """Take one frame, ``[height, width, 3]`` in [0, 1]; frames come in order."""


@runtime_checkable
class TraceSink(Sink, Protocol):
    """Where a rendering goes that is recorded on the way."""

    def traced(self, point: TracePoint, values: Array) -> None:
        """Take what was recorded at one point, in the order in which it came to be."""


class NullSink:
    """A sink that drops everything."""

    def latents(self, latents: Array) -> None:
        """Drop them."""

    def frame(self, video: int, index: int, frame: Array) -> None:
        """Drop it."""


class Worker:
    """A loaded model on one rank.

    Args:
        config: the same on all ranks.
        world: all ranks.
        on_progress: called on this rank.
    """

    def __init__(self, config: EngineConfig, world: World, on_progress: OnProgress) -> None:
        self._world = world
        self._kernel = config.attention_kernel
        self._dtype = dtype_of(config, world.device)
        checkpoint = Checkpoint.open(config.model, config.revision)
        self._spec = registry.inspect(checkpoint, autoencoder_only=config.autoencoder_only)
        vae_dtype = vae_dtype_of(config, self._spec, world.device)
        own = [checkpoint.revision, str(self._dtype), str(vae_dtype)]
        (commit, dtype, first_vae_dtype), *others = world.gather_json(own)
        for other_commit, other_dtype, _ in others:
            if other_commit != commit:
                raise ModelError(
                    f"{config.model} is at commit {commit} on rank 0 and at {other_commit} on "
                    "another: pass --revision"
                )
            if other_dtype != dtype:
                raise ModelError(
                    f"{config.model} is {dtype} on rank 0 and {other_dtype} on another: pass "
                    "--dtype"
                )
        # Rank 0's, which may know alone what latents that were read there are to be decoded in.
        vae_dtype = getattr(torch, first_vae_dtype.removeprefix("torch."))
        self._pipeline = registry.load(
            checkpoint,
            world,
            dtype=self._dtype,
            vae_dtype=vae_dtype,
            kernel=config.attention_kernel,
            shard_weights=config.parallel.shard_weights,
            autoencoder_only=config.autoencoder_only,
            on_component=lambda name: on_progress(Progress("loading", detail=name)),
        )

    def render(
        self,
        job: Job,
        sink: Sink,
        on_progress: OnProgress,
        stop_requested: Callable[[], bool],
        beside: Beside = None,
    ) -> list[RankReport]:
        """Render on all ranks together; rank 0 fills the sink.

        Args:
            beside: what comes with the job, on rank 0.

        Returns:
            What each rank measured.

        Raises:
            RequestError, LayoutError, KernelError, Stopped: on all ranks alike; they can take
                another job.
            PeerLostError: another rank died or was silent for too long.
        """
        world, request, report, kernel = self._world, job.request, StageReport(), ""
        decoder = self._pipeline.decoder(request)
        kept: Snapshots | None = None
        if job.from_latents:
            finished = self._shared(beside)
            check_fits(decoder, finished.shape, request, world)
        else:
            assert isinstance(request, ResolvedRequest)
            kernel = self._agreed_kernel(job.dims)
            grid = self._spec.grid(request)
            if job.decodes:
                check_fits(decoder, grid.shape, request, world)
            with kept_on_the_way(job.snapshots, world, grid) as kept:
                finished = render_latents(
                    RenderRun(
                        self._pipeline,
                        request,
                        job.dims,
                        world,
                        report,
                        on_progress=on_progress,
                        stop_requested=stop_requested,
                        trace=_trace(job, world, sink),
                        picture=beside,
                        snapshots=kept,
                        steps_done=job.steps_before,
                        state=state_to_go_on_from(job.snapshots, world),
                    )
                )
            if world.rank == 0:
                sink.latents(finished.cpu().numpy())
        if job.decodes:
            with self._pipeline.denoiser_on_host() if job.low_memory else nullcontext():
                decode_videos(
                    decoder,
                    finished,
                    world,
                    report,
                    lambda video, index, frame: sink.frame(video, index, frame.numpy()),
                    dropped_frames=self._spec.dropped_frames,
                    on_progress=on_progress,
                    stop_requested=stop_requested,
                    at_once=1 if job.low_memory else None,
                )
        own = RankReport(
            world.rank,
            str(world.device),
            kernel,
            report.seconds,
            report.bytes_sent,
            report.tiles_at_once,
            peak_memory_bytes(),
            steps_before=job.steps_before,
        )
        if world.rank == 0 and not job.from_latents:
            assert isinstance(request, ResolvedRequest)
            cut = self._pipeline.truncated_prompts(request)
            own.truncated = {name: asdict(count) for name, count in cut.items()}
        if kept is not None and world.rank == 0:
            own.seconds["snapshots"] = kept.seconds
            own.snapshots, own.snapshot_failure = kept.taken, kept.failure
        return [RankReport(**each) for each in world.gather_json(asdict(own))]

    def _shared(self, latents: Beside) -> torch.Tensor:
        """Rank 0's latents, on the device of every rank."""
        given = None if latents is None else {"latents": torch.from_numpy(latents)}
        return self._world.broadcast_tensors(given)["latents"]

    def _agreed_kernel(self, dims: ParallelDims) -> str:
        """The attention kernel of a layout: on all ranks the same, or all refuse."""
        needs = KernelNeeds(
            self._world.device, self._dtype, self._spec.head_size, dims.ring_degree > 1
        )
        try:
            own, refusal = select_kernel(self._kernel, needs).name, ""
        except KernelError as error:
            own, refusal = "", str(error)
        answers = self._world.gather_json([own, refusal])
        for rank, (name, refused) in enumerate(answers):
            if refused:
                raise KernelError(refused)
            if name != answers[0][0]:
                raise KernelError(
                    f"kernel={self._kernel!r} is {answers[0][0]} on rank 0 and {name} on rank "
                    f"{rank}: name one that all ranks can run"
                )
        return own


def _trace(job: Job, world: World, sink: Sink) -> Trace | None:
    """What records a job, if it is to be."""
    if job.trace is None:
        return None
    assert isinstance(sink, TraceSink)
    traced = sink.traced
    return Trace(
        job.trace,
        world,
        lambda point, values: traced(point, values.float().cpu().numpy()),
    )


def dtype_of(config: EngineConfig, device: torch.device) -> torch.dtype:
    """The dtype of weights and activations."""
    if config.dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    dtype: torch.dtype = getattr(torch, config.dtype)
    return dtype


def vae_dtype_of(config: EngineConfig, spec: ModelSpec, device: torch.device) -> torch.dtype:
    """The dtype of the decoder: the one that was asked for, else the model's own, else of all."""
    asked = None if config.vae_dtype == "auto" else config.vae_dtype
    named = asked or spec.defaults.vae_dtype
    return dtype_of(config, device) if named is None else getattr(torch, named)


def peak_memory_bytes() -> int:
    """The most memory in use since this process started: of its GPU, or its own."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    return process_bytes("VmHWM")  # getrusage's also counts the process that started this one


def process_bytes(key: str) -> int:
    """A figure of this process by its name in Linux's /proc/self/status, such as VmRSS."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(f"{key}:"))
    return int(line.split()[1]) * 1024


def is_out_of_memory(error: BaseException) -> bool:
    """torch has a class of its own for a GPU's memory, and none for the host's."""
    kinds = (MemoryError, torch.OutOfMemoryError)
    return isinstance(error, kinds) or "allocate memory" in str(error)


def control_group() -> dist.ProcessGroup:
    """A group over all ranks for waiting on another that computes or writes; all ranks call this.

    Its timeout is none to speak of: deadlines of their own watch over those that work, and a rank
    that ends is noticed at once.
    """
    group: dist.ProcessGroup = dist.new_group(backend="gloo", timeout=_LONGEST_WAIT)
    return group


def join_group(
    store: dist.Store | None, device: torch.device, rank: int, world_size: int, timeout_s: float
) -> dist.ProcessGroup:
    """Make the process group of all ranks; it takes tensors of the CPU and of the device.

    Args:
        store: None finds torchrun's.

    Raises:
        EngineError: the others cannot be met.
    """
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(device)
    try:
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
            store=store,
            rank=rank if store else -1,
            world_size=world_size if store else -1,
            timeout=timedelta(seconds=timeout_s),
            device_id=device if on_gpu else None,
        )
    except (RuntimeError, ValueError) as error:
        address = ":".join(os.environ.get(f"MASTER_{part}", "?") for part in ("ADDR", "PORT"))
        raise EngineError(
            f"rank {rank} of {world_size} cannot meet the others at {address}: check that the port "
            f"is free and that all ranks were started ({one_line(error)[:200]})"
        ) from error
    group = dist.group.WORLD
    assert group is not None
    return group
