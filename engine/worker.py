"""What one rank executes, whatever started it: load the model, render, report."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict, dataclass, field

import torch

from longtake.configs.engine import EngineConfig
from longtake.configs.fields.weights import TextPlace, WeightPlace
from longtake.configs.request import ResolvedRequest
from longtake.engine.job import LATENTS, Job, JobInputs, JobRun
from longtake.engine.loras.choice import LORAS_STAGE, NO_LORAS, LoraChoice
from longtake.engine.loras.matching import LoraMatcher
from longtake.engine.loras.rank_loras import RankLoras
from longtake.engine.media.sinks import Sink, TraceSink
from longtake.engine.media.snapshot import load_resume_state, snapshot_writer
from longtake.engine.memory_use import peak_memory_bytes, swapped_bytes
from longtake.engine.rank_report import RankReport
from longtake.errors import KernelError, LayoutError, ModelError, RequestError
from longtake.parallel import KernelNeeds, ParallelDims, World, select_kernel
from longtake.pipelines import registry
from longtake.pipelines.codec.decode import TileRun, check_decode_memory, decode_videos
from longtake.pipelines.codec.tiles import TileCoder
from longtake.pipelines.family import VideoPipeline
from longtake.pipelines.loading.checkpoint import Checkpoint
from longtake.pipelines.loading.plan import ComponentPlan, LoadPlan
from longtake.pipelines.runtime.progress import OnProgress, Progress
from longtake.pipelines.runtime.render_run import RenderRun
from longtake.pipelines.runtime.rendering import render_latents
from longtake.pipelines.runtime.snapshots import Snapshots
from longtake.pipelines.runtime.stages import StageReport, stage
from longtake.pipelines.runtime.trace import Trace

REFUSED_ON_ALL_RANKS = (RequestError, LayoutError, KernelError)
"""Refusals that all ranks raise alike; others may concern only one rank."""


@dataclass
class _Rendering:
    """A job that is being rendered on this rank.

    Attributes:
        run: The job, its input and its callbacks.
        swapped_before: Bytes that the host had swapped before.
        kernel: Name of the attention kernel; empty if nothing is denoised.
        snapshots: Saves snapshots; None saves none.
        report: What this rank measures.
    """

    run: JobRun
    swapped_before: int = field(default_factory=swapped_bytes)
    kernel: str = ""
    snapshots: Snapshots | None = None
    report: StageReport = field(default_factory=StageReport)

    @property
    def request(self) -> ResolvedRequest:
        """The request of a job that denoises."""
        request = self.run.job.request
        assert isinstance(request, ResolvedRequest)
        return request


class Worker:
    """A loaded model on one rank. Created on all ranks together.

    Args:
        config: The engine's configuration, the same on all ranks.
        world: All ranks.
        on_progress: Called on this rank while the model loads.
        loras: LoRAs of the first job, with which the model is loaded. Rank 0's count.

    Raises:
        ModelError: The model cannot be loaded, or it differs between ranks.
        RequestError: A rank cannot use a LoRA.
    """

    def __init__(
        self,
        config: EngineConfig,
        world: World,
        on_progress: OnProgress,
        loras: LoraChoice = NO_LORAS,
    ) -> None:
        self._world = world
        self._kernel = config.attention_kernel
        checkpoint = Checkpoint.open(config.model, config.revision, parts=config.parts)
        self._spec = registry.inspect(checkpoint, autoencoder_only=config.autoencoder_only)
        dtype = config.compute_dtype(world.device.type)
        vae_dtype = config.autoencoder_dtype(self._spec.defaults.vae_dtype, world.device.type)
        first_vae_dtype, weights, text_weights, first_loras = _agree(
            world, config, checkpoint, dtype, vae_dtype, loras
        )
        _check_parts(world, checkpoint)
        self._dtype: torch.dtype = getattr(torch, dtype)
        self._loras = RankLoras(LoraMatcher(checkpoint, config.lora_folder), world)
        plan = LoadPlan(
            transformer=ComponentPlan(
                self._dtype, weights, config.storage_dtype, self._loras.prepare(first_loras)
            ),
            text_encoders=ComponentPlan(self._dtype, text_weights),
            autoencoder=ComponentPlan(getattr(torch, first_vae_dtype)),
            kernel=config.attention_kernel,
        )

        def on_component(name: str) -> None:
            on_progress(Progress("loading", detail=name))

        self._pipeline: VideoPipeline | None = None  # None if the autoencoder suffices
        if config.autoencoder_only:
            on_component("vae")
            self._codec = registry.load_codec(checkpoint, self._spec, world, plan)
        else:
            self._pipeline = registry.load(checkpoint, world, plan, on_component)
            self._codec = self._pipeline.codec
            self._loras.loaded(self._pipeline.denoiser.transformers)
            if world.device.type == "cuda" and plan.transformer.place != "resident":
                self._codec.rest_on_host()

    @property
    def pipeline(self) -> VideoPipeline:
        """The loaded model; the engine refuses what needs more than the autoencoder, if only that
        is loaded."""
        assert self._pipeline is not None
        return self._pipeline

    def render(self, run: JobRun) -> list[RankReport]:
        """Render a job on all ranks together.

        Returns:
            What each rank measured, by rank.

        Raises:
            RequestError, LayoutError, KernelError, Stopped: Raised on all ranks alike, which can
                take another job.
            PeerLostError: Another rank died or was silent for too long.
        """
        job, rendering = run.job, _Rendering(run)
        decoder = self._codec.decoder(job.request)
        if job.from_latents:
            latents = self._world.broadcast_tensors(_tensors(run.inputs))[LATENTS]
            with self._codec.at_work():
                check_decode_memory(decoder, latents.shape, job.request, self._world)
        else:
            latents = self._denoise(rendering, decoder)
            if self._world.rank == 0:
                run.sink.latents(latents.cpu().numpy())
        if job.decodes:
            self._decode(rendering, decoder, latents)
        return self._gather_reports(rendering)

    def _denoise(self, rendering: _Rendering, decoder: TileCoder) -> torch.Tensor:
        """The latents of a request, on every rank. Saves snapshots."""
        run, request, world = rendering.run, rendering.request, self._world
        job = run.job
        rendering.kernel = self._select_kernel(job.dims)
        grid = self._spec.grid(request)
        if job.decodes:
            with self._codec.at_work():
                check_decode_memory(decoder, grid.shape, request, world)
        self._exchange_loras(rendering)
        with snapshot_writer(job.snapshots, world, grid) as rendering.snapshots:
            return render_latents(
                RenderRun(
                    self.pipeline,
                    request,
                    job.dims,
                    world,
                    rendering.report,
                    on_progress=run.on_progress,
                    stop_requested=run.stop_requested,
                    trace=_trace(job, world, run.sink),
                    pictures=run.inputs,
                    snapshots=rendering.snapshots,
                    steps_done=job.steps_before,
                    state=load_resume_state(job.snapshots, world),
                )
            )

    def _exchange_loras(self, rendering: _Rendering) -> None:
        """Have the LoRAs of the request in the transformers, and no others."""
        choice = LoraChoice.of(rendering.request)
        if choice != self._loras.fused:
            rendering.run.on_progress(Progress("loading", detail="LoRAs"))
            with stage(rendering.report, LORAS_STAGE):
                self._loras.fuse(choice)

    def _decode(self, rendering: _Rendering, decoder: TileCoder, latents: torch.Tensor) -> None:
        """Decode latents on all ranks; rank 0's sink receives the frames."""
        run, low_memory, pipeline = rendering.run, rendering.run.job.low_memory, self._pipeline
        offload = pipeline.denoiser_on_host() if low_memory and pipeline else nullcontext()
        with offload, self._codec.at_work():
            decode_videos(
                TileRun(
                    decoder,
                    latents,
                    self._world,
                    on_progress=run.on_progress,
                    stop_requested=run.stop_requested,
                    tiles_at_once=1 if low_memory else None,
                ),
                lambda video, index, frame: run.sink.frame(video, index, frame.numpy()),
                rendering.report,
                dropped_frames=self._spec.dropped_frames,
            )

    def _gather_reports(self, rendering: _Rendering) -> list[RankReport]:
        """What each rank measured, on all ranks."""
        world, report = self._world, rendering.report
        own = RankReport(
            world.rank,
            str(world.device),
            rendering.kernel,
            report.seconds,
            report.bytes_sent,
            report.tiles_at_once,
            peak_memory_bytes(),
            steps_before=rendering.run.job.steps_before,
            swapped_bytes=swapped_bytes() - rendering.swapped_before,
        )
        if world.rank == 0 and not rendering.run.job.from_latents:
            truncated = self.pipeline.truncated_prompts(rendering.request)
            own.truncated = {name: asdict(count) for name, count in truncated.items()}
            own.loras = self._loras.described()
        if world.rank == 0 and (snapshots := rendering.snapshots) is not None:
            own.seconds["snapshots"] = snapshots.blocked_s
            own.snapshots, own.snapshot_failure = snapshots.num_written, snapshots.failure
        return [RankReport(**each) for each in world.gather_json(asdict(own))]

    def _select_kernel(self, dims: ParallelDims) -> str:
        """Name of the attention kernel for a layout.

        Raises:
            KernelError: On all ranks, if one cannot run the kernel or selects another one.
        """
        needs = KernelNeeds(
            self._world.device, self._dtype, self._spec.head_size, dims.ring_degree > 1
        )
        try:
            own, refusal = select_kernel(self._kernel, needs).name, ""
        except KernelError as error:
            own, refusal = "", str(error)
        selected = self._world.gather_json([own, refusal])
        first = selected[0][0]
        for rank, (name, refused) in enumerate(selected):
            if refused:
                raise KernelError(refused)
            if name != first:
                raise KernelError(
                    f"kernel={self._kernel!r} is {first} on rank 0 and {name} on rank {rank}: "
                    "name one that all ranks can run"
                )
        return own


def _agree(
    world: World,
    config: EngineConfig,
    checkpoint: Checkpoint,
    dtype: str,
    vae_dtype: str,
    loras: LoraChoice,
) -> tuple[str, WeightPlace, TextPlace, LoraChoice]:
    """Check that all ranks load the same commit in the same dtype and storage.

    Returns:
        Rank 0's dtype of the autoencoder, its places of weights and its LoRAs: it may be the only
        rank that has read the latents' file, which names the one, or the request, on which the
        others depend.

    Raises:
        ModelError: The ranks differ.
    """
    model, storage = config.model, config.storage_dtype or "the dtype"
    own = [checkpoint.revision, dtype, storage, vae_dtype, *config.places, loras.model_dump()]
    first, *others = world.gather_json(own)
    first_commit, first_dtype, first_storage, first_vae_dtype, *places, first_loras = first
    for commit, other_dtype, other_storage, *_ in others:
        if commit != first_commit:
            raise ModelError(
                f"{model} is at commit {first_commit} on rank 0 and at {commit} on another: pass "
                "--revision"
            )
        if other_dtype != first_dtype:
            raise ModelError(
                f"{model} is {first_dtype} on rank 0 and {other_dtype} on another: pass --dtype"
            )
        if other_storage != first_storage:
            raise ModelError(
                f"{model} is stored as {first_storage} on rank 0 and as {other_storage} on "
                "another: pass the same --storage-dtype to all"
            )
    weights, text_weights = places
    return first_vae_dtype, weights, text_weights, LoraChoice(**first_loras)


def _check_parts(world: World, checkpoint: Checkpoint) -> None:
    """Check that all ranks take the same components from other files.

    Raises:
        ModelError: The ranks differ.
    """
    first, *others = world.gather_json(
        {name: each.digest for name, each in checkpoint.parts.items()}
    )
    for rank, other in enumerate(others, 1):
        for name in sorted({*first, *other}):
            if first.get(name) != other.get(name):
                raise ModelError(
                    f"{name} is not the same on rank 0 and on rank {rank}: pass one file to all, "
                    f"with --{name.replace('_', '-')}"
                )


def _tensors(inputs: JobInputs) -> dict[str, torch.Tensor] | None:
    """The inputs as tensors; None without any, as on all ranks but 0."""
    return {name: torch.from_numpy(array) for name, array in inputs.items()} or None


def _trace(job: Job, world: World, sink: Sink) -> Trace | None:
    """What records a traced job."""
    if job.trace is None:
        return None
    assert isinstance(sink, TraceSink)
    traced = sink.traced
    return Trace(
        job.trace, world, lambda point, values: traced(point, values.float().cpu().numpy())
    )
