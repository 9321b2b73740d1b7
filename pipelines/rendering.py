"""From a request to latents, on all ranks together."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch

from longtake.configs.request import ResolvedRequest
from longtake.errors import RefusedInputError, RequestError, Stopped
from longtake.parallel import ParallelDims, TokenShards, World
from longtake.pipelines.base import (
    ImageToVideoPipeline,
    Streams,
    TrueCfg,
    VideoPipeline,
    check_image,
    check_latents,
    denoise,
)
from longtake.pipelines.picture import Pixels, as_video, fitted
from longtake.pipelines.progress import OnProgress, Progress
from longtake.pipelines.stages import StageReport, stage
from longtake.pipelines.trace import Trace
from longtake.pipelines.weights import fetch_traffic


@torch.no_grad()
def render_latents(
    pipeline: VideoPipeline,
    request: ResolvedRequest,
    dims: ParallelDims,
    world: World,
    report: StageReport,
    *,
    on_progress: OnProgress = lambda progress: None,
    stop_requested: Callable[[], bool] = lambda: False,
    trace: Trace | None = None,
    picture: Pixels | None = None,
) -> torch.Tensor:
    """Encode the prompt and the picture, denoise over all ranks, gather once.

    Called by all ranks with the same request and layout.

    Args:
        report: filled with the stages "text", "denoising" and "gathering"; of image-to-video with
            "image", too.
        on_progress: called on each rank.
        stop_requested: asked between steps; if any rank says yes, all stop.
        trace: takes the latents after each step, and what else it asks for.
        picture: on rank 0, that the videos begin with, ``[H, W, 3]`` of any size; of an
            image-to-video model alone.

    Returns:
        ``[B, C, F, H, W]``, float32, on every rank; traced ones need not be finite.

    Raises:
        RequestError: the prompt cannot be encoded, or the layout does not fit the request.
        Stopped: ``stop_requested``.
        PeerLostError: another rank died or was silent for too long.
    """
    if dims.cfg_degree > 1 and not request.uses_true_cfg:
        raise RequestError(
            f"cfg_degree={dims.cfg_degree} with true_cfg_scale={request.true_cfg_scale}: without "
            "true CFG there is no second branch to compute; raise true_cfg_scale or leave "
            "cfg_degree at 1"
        )
    mesh = world.mesh(dims)
    on_progress(Progress("text", detail="the prompt"))
    with stage(report, "text"):
        streams = [_encode_once(pipeline, request, world, picture, negative=False)]
        if request.uses_true_cfg:
            streams.append(_encode_once(pipeline, request, world, picture, negative=True))

    image = None
    if isinstance(pipeline, ImageToVideoPipeline):
        on_progress(Progress("text", detail="the picture"))
        with stage(report, "image"):
            pixels = as_video(_fitted_once(picture, request, world))
            image = check_image(pipeline.encode_image(pixels, request, world))

    denoiser = pipeline.denoiser
    grid, stepper = pipeline.grid(request), pipeline.stepper(request)
    branches = [denoiser.branch(each, grid, dims, mesh, request, image) for each in streams]
    shards = TokenShards.even(grid.num_tokens, dims)
    start = shards.split(grid.patchify(pipeline.start(grid, request, image)), mesh, dim=1)
    total = len(stepper.timesteps)
    clock = _DeviceClock(world.device, lambda done: on_progress(Progress("denoising", done, total)))

    def gathered(tokens: torch.Tensor) -> torch.Tensor:
        return grid.unpatchify(shards.gather(tokens.contiguous(), mesh, dim=1))

    def after_step(done: int, tokens: torch.Tensor) -> None:
        clock.step(done)
        if trace is not None:
            trace.after_step(done, gathered(tokens))
        if world.any(stop_requested()):
            raise Stopped(f"stopped after step {done} of {total}")

    on_progress(Progress("denoising", 0, total))
    watched = trace.watching(denoiser, branches, grid, dims) if trace else nullcontext()
    with stage(report, "denoising"), watched:
        tokens = denoise(
            denoiser,
            start.to(world.device),
            branches,
            stepper,
            mesh=mesh,
            true_cfg=TrueCfg(request.true_cfg_scale) if request.uses_true_cfg else None,
            after_step=after_step,
        )
        clock.finish()
    in_turn = len(branches) // dims.cfg_degree
    report.bytes_sent["weights"] = fetch_traffic(denoiser) * total * in_turn
    with stage(report, "gathering"):
        latents = gathered(tokens)
    return check_latents(latents) if trace is None else latents


def _encode_once(
    pipeline: VideoPipeline,
    request: ResolvedRequest,
    world: World,
    picture: Pixels | None,
    *,
    negative: bool,
) -> Streams:
    """Encode on rank 0, hand to all; all refuse what rank 0 refuses."""
    streams: Streams | None = None
    refusal = None
    if world.rank == 0:
        try:
            streams = pipeline.encode(request, picture, negative=negative)
        except RefusedInputError as error:
            refusal = str(error)
    refusals = world.gather_json(refusal)
    if refusals[0] is not None:
        raise RequestError(refusals[0])
    return world.broadcast_tensors(streams)


def _fitted_once(picture: Pixels | None, request: ResolvedRequest, world: World) -> torch.Tensor:
    """Rank 0's picture in the video's size, ``[H, W, 3]``, on the device of every rank."""
    fit = None
    if world.rank == 0:
        assert picture is not None and request.resize_mode is not None
        pixels = fitted(picture, request.height, request.width, request.resize_mode)
        fit = {"picture": torch.from_numpy(pixels)}
    return world.broadcast_tensors(fit)["picture"]


class _DeviceClock:
    """Says when the device, not the host, has finished a step; the host runs one step ahead."""

    def __init__(self, device: torch.device, on_step: Callable[[int], None]) -> None:
        self._on_step = on_step
        self._on_gpu = device.type == "cuda"
        self._pending: tuple[int, torch.cuda.Event] | None = None

    def step(self, done: int) -> None:
        """The host has queued a step."""
        if not self._on_gpu:
            self._on_step(done)
            return
        event = torch.cuda.Event()
        event.record()
        self.finish()
        self._pending = (done, event)

    def finish(self) -> None:
        """Wait for what is queued."""
        if self._pending is not None:
            done, event = self._pending
            event.synchronize()
            self._pending = None
            self._on_step(done)
