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
    Stepper,
    Streams,
    TrueCfg,
    VideoPipeline,
    check_image,
    check_latents,
    denoise,
)
from longtake.pipelines.picture import Pixels, as_video, fitted
from longtake.pipelines.progress import OnProgress, Progress
from longtake.pipelines.snapshots import LoopState, Snapshots
from longtake.pipelines.stages import StageReport, stage
from longtake.pipelines.trace import Trace
from longtake.pipelines.weights import fetch_traffic

_GO_ON, _KEEP, _STOP = range(3)
"""What a rank wishes after a step; the highest wish of any rank is what all do."""


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
    snapshots: Snapshots | None = None,
    steps_done: int = 0,
    state: LoopState | None = None,
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
        snapshots: keeps the state of the loop now and then, and at its end; on all ranks or none,
            and rank 0's decides.
        steps_done: of an earlier rendering of this request, which this one goes on with.
        state: on rank 0, the state of its loop after these.

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
    total = request.num_inference_steps
    earlier = _of_rank_0(state, world) if steps_done else {}
    if steps_done == total:
        on_progress(Progress("denoising", total, total))
        return earlier["latents"]
    mesh = world.mesh(dims)
    streams = _encoded(pipeline, request, world, report, picture, on_progress)
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
    start = earlier.pop("latents") if steps_done else pipeline.start(grid, request, image)
    if steps_done:
        stepper.go_on(steps_done, earlier)

    def gathered(tokens: torch.Tensor) -> torch.Tensor:
        return grid.unpatchify(shards.gather(tokens.contiguous(), mesh, dim=1))

    between = _BetweenSteps(
        world, stepper, gathered, total, on_progress, stop_requested, trace, snapshots
    )
    watched = trace.watching(denoiser, branches, grid, dims) if trace else nullcontext()
    between.begin(steps_done)
    with stage(report, "denoising"), watched:
        tokens = denoise(
            denoiser,
            shards.split(grid.patchify(start), mesh, dim=1).to(world.device),
            branches,
            stepper,
            mesh=mesh,
            true_cfg=TrueCfg(request.true_cfg_scale) if request.uses_true_cfg else None,
            after_step=between,
            steps_done=steps_done,
        )
        between.end()
    in_turn = len(branches) // dims.cfg_degree
    report.bytes_sent["weights"] = fetch_traffic(denoiser) * (total - steps_done) * in_turn
    with stage(report, "gathering"):
        latents = gathered(tokens)
    if trace is not None:
        return latents
    check_latents(latents)
    if snapshots is not None and snapshots.at_the_end:
        snapshots.take(lambda: LoopState(total, latents.cpu(), stepper.state()))
    return latents


class _BetweenSteps:
    """What all ranks do after each step: tell it, record it, keep it, or stop; together.

    Args:
        gathered: brings the latents of all ranks' tokens together.
        total: steps.
    """

    def __init__(
        self,
        world: World,
        stepper: Stepper,
        gathered: Callable[[torch.Tensor], torch.Tensor],
        total: int,
        on_progress: OnProgress,
        stop_requested: Callable[[], bool],
        trace: Trace | None,
        snapshots: Snapshots | None,
    ) -> None:
        self._world = world
        self._stepper = stepper
        self._gathered = gathered
        self._total = total
        self._stop_requested = stop_requested
        self._trace = trace
        self._snapshots = snapshots
        self._on_progress = on_progress
        self._clock = _DeviceClock(world.device, self._tell)

    def _tell(self, done: int) -> None:
        self._on_progress(Progress("denoising", done, self._total))

    def begin(self, steps_done: int) -> None:
        """Before the first step."""
        self._tell(steps_done)
        if self._snapshots is not None:
            self._snapshots.begin(steps_done)

    def end(self) -> None:
        """After the last."""
        self._clock.finish()

    def __call__(self, done: int, tokens: torch.Tensor) -> None:
        """After a step: ``tokens`` are this rank's, ``[B, s, P]``.

        Raises:
            Stopped: on all ranks alike.
        """
        kept = self._snapshots
        if kept is not None:
            kept.settle()
        self._clock.step(done)
        if self._trace is not None:
            self._trace.after_step(done, self._gathered(tokens))
        wish = _STOP if self._stop_requested() else _GO_ON
        if wish == _GO_ON and kept is not None and self._world.rank == 0 and kept.due(done):
            wish = _KEEP
        agreed = self._world.highest(wish)
        if agreed != _GO_ON and kept is not None and done < self._total:
            self._clock.finish()  # a step that a GPU is still at is no snapshot's cost
            kept.take(lambda: LoopState(done, self._gathered(tokens).cpu(), self._stepper.state()))
        if agreed == _STOP:
            raise Stopped(f"stopped after step {done} of {self._total}")


def _encoded(
    pipeline: VideoPipeline,
    request: ResolvedRequest,
    world: World,
    report: StageReport,
    picture: Pixels | None,
    on_progress: OnProgress,
) -> list[Streams]:
    """The prompt, and with true CFG the negative one, on all ranks."""
    on_progress(Progress("text", detail="the prompt"))
    negatives = (False, True) if request.uses_true_cfg else (False,)
    with stage(report, "text"):
        return [
            _encode_once(pipeline, request, world, picture, negative=negative)
            for negative in negatives
        ]


def _of_rank_0(state: LoopState | None, world: World) -> dict[str, torch.Tensor]:
    """The state of a loop, on all ranks: ``latents`` and what the scheduler needs."""
    given = None if state is None else {"latents": state.latents, **state.scheduler}
    return world.broadcast_tensors(given)


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
