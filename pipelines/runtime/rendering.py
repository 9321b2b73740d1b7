"""Renders a request to latents, on all ranks together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh

from longtake.configs.request import ResolvedRequest
from longtake.errors import RefusedInputError, RequestError, Stopped
from longtake.parallel import ParallelDims, TokenShards, World
from longtake.pipelines.base import (
    Guidance,
    ImageToVideoPipeline,
    Stepper,
    Streams,
    VideoPipeline,
    check_image,
    check_latents,
    denoise,
)
from longtake.pipelines.codec.picture import Pixels, picture_to_video, resize_picture
from longtake.pipelines.loading.weights import all_gather_bytes
from longtake.pipelines.runtime.progress import OnProgress, Progress, StopRequested, never
from longtake.pipelines.runtime.snapshots import LoopState, Snapshots
from longtake.pipelines.runtime.stages import StageReport, stage
from longtake.pipelines.runtime.trace import Trace
from longtake.pipelines.spec import LatentGrid

_CONTINUE, _SNAPSHOT, _STOP = range(3)
"""What a rank requests after a step. Decision = max over ranks."""


@dataclass(frozen=True)
class RenderRun:
    """The rendering of one request to latents, as one rank sees it.

    Attributes:
        pipeline: The loaded model.
        request: The request, the same on all ranks.
        dims: The layout, the same on all ranks.
        world: All ranks.
        report: Receives the stages "text", "image" (image-to-video only), "denoising" and
            "gathering".
        on_progress: Called on each rank.
        stop_requested: Polled between steps; if it returns true on any rank, all stop.
        trace: Records the latents after each step; None records nothing.
        pictures: On rank 0, the pictures that the request names by field, ``[H, W, 3]`` of any
            size.
        snapshots: Saves the state of the loop, on all ranks or none; rank 0 decides when.
        steps_done: Number of steps that a previous run of this request completed.
        state: On rank 0, the state of the loop after ``steps_done`` steps.
    """

    pipeline: VideoPipeline
    request: ResolvedRequest
    dims: ParallelDims
    world: World
    report: StageReport = field(default_factory=StageReport)
    on_progress: OnProgress = lambda progress: None
    stop_requested: StopRequested = never
    trace: Trace | None = None
    pictures: Mapping[str, Pixels] = field(default_factory=dict)
    snapshots: Snapshots | None = None
    steps_done: int = 0
    state: LoopState | None = None


@torch.no_grad()
def render_latents(run: RenderRun) -> torch.Tensor:
    """Encode the prompt and the picture, denoise over all ranks, gather once.

    Called by all ranks together.

    Returns:
        Latents ``[B, C, F, H, W]``, float32, on every rank. They are finite, except in a traced
        run.

    Raises:
        RequestError: The prompt cannot be encoded, or the layout does not fit the request.
        Stopped: ``stop_requested`` returned true on a rank.
        PeerLostError: Another rank died or was silent for too long.
    """
    _check_layout(run)
    saved = _broadcast_state(run)
    if run.steps_done == run.request.num_inference_steps:
        run.on_progress(Progress("denoising", run.steps_done, run.steps_done))
        return saved["latents"]
    sharding = _LatentSharding.of(run)
    streams, image = _encode_prompts(run), _encode_picture(run)
    stepper = run.pipeline.stepper(run.request)
    guidance = _prepare_guidance(run, sharding, streams, image)
    latents = _initial_latents(run, sharding.grid, stepper, saved, image)
    return _denoise(run, sharding, latents, guidance, stepper)


@dataclass(frozen=True)
class _LatentSharding:
    """Converts between whole latents and this rank's tokens.

    Attributes:
        grid: Latent grid of the request.
        shards: Ownership of the video tokens by rank.
        mesh: Device mesh; None on one rank.
    """

    grid: LatentGrid
    shards: TokenShards
    mesh: DeviceMesh | None

    @classmethod
    def of(cls, run: RenderRun) -> _LatentSharding:
        """The sharding of a run's latents over its layout."""
        grid = run.pipeline.spec.grid(run.request)
        shards = TokenShards.even(grid.num_tokens, run.dims)
        return cls(grid, shards, run.world.mesh(run.dims))

    def split(self, latents: torch.Tensor) -> torch.Tensor:
        """``[B, C, F, H, W]`` to this rank's tokens, ``[B, s, P]``."""
        return self.shards.split(self.grid.patchify(latents), self.mesh, dim=1)

    def gather(self, tokens: torch.Tensor) -> torch.Tensor:
        """The inverse of :meth:`split`, on every rank. Collective."""
        return self.grid.unpatchify(self.shards.gather(tokens.contiguous(), self.mesh, dim=1))


def _prepare_guidance(
    run: RenderRun,
    sharding: _LatentSharding,
    streams: Sequence[Streams],
    image: torch.Tensor | None,
) -> Guidance:
    """Prepare the branches of guidance from their conditioning."""
    denoiser, grid, mesh = run.pipeline.denoiser, sharding.grid, sharding.mesh
    branches = [
        denoiser.prepare_branch(each, grid, run.dims, mesh, run.request, image) for each in streams
    ]
    return Guidance(branches, run.pipeline.guidance_scale(run.request), mesh)


def _initial_latents(
    run: RenderRun,
    grid: LatentGrid,
    stepper: Stepper,
    saved: dict[str, torch.Tensor],
    image: torch.Tensor | None,
) -> torch.Tensor:
    """The latents after ``run.steps_done`` steps, with the stepper at that step."""
    if not run.steps_done:
        return run.pipeline.initial_latents(grid, run.request, image)
    latents = saved.pop("latents")
    stepper.resume(run.steps_done, saved)
    return latents


def _denoise(
    run: RenderRun,
    sharding: _LatentSharding,
    latents: torch.Tensor,
    guidance: Guidance,
    stepper: Stepper,
) -> torch.Tensor:
    """Denoise over all ranks, then gather the latents once."""
    denoiser = run.pipeline.denoiser
    after_step = _AfterStep(run, stepper, sharding.gather)
    after_step.begin()
    with stage(run.report, "denoising"), _tracing(run, sharding.grid, guidance.branches):
        tokens = sharding.split(latents).to(run.world.device)
        tokens = denoise(denoiser, tokens, guidance, stepper, after_step, run.steps_done)
        after_step.finish()
    num_steps = run.request.num_inference_steps - run.steps_done
    num_passes = num_steps * len(guidance.branches) // run.dims.cfg_degree
    run.report.bytes_sent["weights"] = all_gather_bytes(denoiser) * num_passes
    with stage(run.report, "gathering"):
        latents = sharding.gather(tokens)
    if run.trace is None:
        check_latents(latents)
        after_step.save_finished(latents)
    return latents


def _check_layout(run: RenderRun) -> None:
    """Refuse ``cfg_degree`` 2 without classifier-free guidance."""
    degree = run.dims.cfg_degree
    if degree > 1 and run.pipeline.spec.num_passes(run.request) == 1:
        raise RequestError(
            f"cfg_degree={degree}: without classifier-free guidance there is no second pass to "
            "compute; leave cfg_degree at 1"
        )


def _broadcast_state(run: RenderRun) -> dict[str, torch.Tensor]:
    """The state to resume from, on all ranks: ``latents`` and the scheduler's tensors; empty if
    the run starts at step 0."""
    if not run.steps_done:
        return {}
    state = run.state
    tensors = None if state is None else {"latents": state.latents, **state.scheduler}
    return run.world.broadcast_tensors(tensors)


def _encode_prompts(run: RenderRun) -> list[Streams]:
    """The prompt and, with true CFG, the negative prompt, on all ranks."""
    run.on_progress(Progress("text", detail="the prompt"))
    branches = (False, True) if run.pipeline.spec.num_passes(run.request) > 1 else (False,)
    with stage(run.report, "text"):
        return [_encode_prompt(run, negative=negative) for negative in branches]


def _encode_prompt(run: RenderRun, *, negative: bool) -> Streams:
    """Encode on rank 0 and broadcast; rank 0's refusal is raised on all ranks."""
    streams: Streams | None = None
    refusal = None
    if run.world.rank == 0:
        try:
            streams = run.pipeline.encode(run.request, run.pictures, negative=negative)
        except RefusedInputError as error:
            refusal = str(error)
    refusals = run.world.gather_json(refusal)
    if refusals[0] is not None:
        raise RequestError(refusals[0])
    return run.world.broadcast_tensors(streams)


def _encode_picture(run: RenderRun) -> torch.Tensor | None:
    """The latents of the picture, on all ranks; None for a text-to-video model."""
    if not isinstance(run.pipeline, ImageToVideoPipeline):
        return None
    run.on_progress(Progress("text", detail="the picture"))
    with stage(run.report, "image"):
        pixels = picture_to_video(_broadcast_picture(run))
        return check_image(run.pipeline.encode_image(pixels, run.request, run.world))


def _broadcast_picture(run: RenderRun) -> torch.Tensor:
    """Rank 0's picture in the size of the video, ``[H, W, 3]``, on every rank's device."""
    tensors, request = None, run.request
    if run.world.rank == 0:
        assert request.resize_mode is not None
        picture = run.pictures["image"]
        pixels = resize_picture(picture, request.height, request.width, request.resize_mode)
        tensors = {"picture": torch.from_numpy(pixels)}
    return run.world.broadcast_tensors(tensors)["picture"]


def _tracing(
    run: RenderRun, grid: LatentGrid, branches: Sequence[Any]
) -> AbstractContextManager[None]:
    """Records the blocks of a traced run."""
    if run.trace is None:
        return nullcontext()
    return run.trace.record_blocks(run.pipeline.denoiser, branches, grid, run.dims)


class _AfterStep:
    """Reports, traces, saves a snapshot or stops after each step, on all ranks together.

    Args:
        run: The run.
        stepper: Its scheduler, whose state belongs in a snapshot.
        gather: Gathers the latents from the tokens of all ranks.
    """

    def __init__(
        self, run: RenderRun, stepper: Stepper, gather: Callable[[torch.Tensor], torch.Tensor]
    ) -> None:
        self._run = run
        self._stepper = stepper
        self._gather = gather
        self._total = run.request.num_inference_steps
        self._clock = _DeviceClock(run.world.device, self._report)

    def begin(self) -> None:
        """Called before the first step."""
        self._report(self._run.steps_done)
        if self._run.snapshots is not None:
            self._run.snapshots.begin(self._run.steps_done)

    def __call__(self, done: int, tokens: torch.Tensor) -> None:
        """Called after step ``done`` with this rank's tokens, ``[B, s, P]``.

        Raises:
            Stopped: On all ranks alike.
        """
        snapshots = self._run.snapshots
        if snapshots is not None:
            snapshots.wait()
        self._clock.step(done)
        if self._run.trace is not None:
            self._run.trace.after_step(done, self._gather(tokens))
        decision = self._run.world.all_reduce_max(self._decide(done))
        if decision != _CONTINUE and snapshots is not None and done < self._total:
            self._clock.finish()  # a snapshot's cost excludes the step that the GPU still computes
            snapshots.save(lambda: self._state(done, self._gather(tokens)))
        if decision == _STOP:
            raise Stopped(f"stopped after step {done} of {self._total}")

    def finish(self) -> None:
        """Called after the last step: wait for the device."""
        self._clock.finish()

    def save_finished(self, latents: torch.Tensor) -> None:
        """Save the gathered latents after the last step, if snapshots include them."""
        snapshots = self._run.snapshots
        if snapshots is not None and snapshots.after_last_step:
            snapshots.save(lambda: self._state(self._total, latents))

    def _decide(self, done: int) -> int:
        """This rank's own decision after step ``done``."""
        run = self._run
        if run.stop_requested():
            return _STOP
        due = run.snapshots is not None and run.world.rank == 0 and run.snapshots.due(done)
        return _SNAPSHOT if due else _CONTINUE

    def _state(self, done: int, latents: torch.Tensor) -> LoopState:
        return LoopState(done, latents.cpu(), self._stepper.state())

    def _report(self, done: int) -> None:
        self._run.on_progress(Progress("denoising", done, self._total))


class _DeviceClock:
    """Reports a step when the device has finished it; the host runs one step ahead.

    Args:
        device: The rank's device.
        on_step: Called with the number of steps done.
    """

    def __init__(self, device: torch.device, on_step: Callable[[int], None]) -> None:
        self._on_step = on_step
        self._on_gpu = device.type == "cuda"
        self._pending: tuple[int, torch.cuda.Event] | None = None

    def step(self, done: int) -> None:
        """Called when the host has queued a step."""
        if not self._on_gpu:
            self._on_step(done)
            return
        event = torch.cuda.Event()
        event.record()
        self.finish()
        self._pending = (done, event)

    def finish(self) -> None:
        """Wait for the queued step."""
        if self._pending is not None:
            done, event = self._pending
            event.synchronize()
            self._pending = None
            self._on_step(done)
