"""Runs the autoencoder in tiles over all ranks; rank 0 blends the tiles in order.

Legend: B videos, C channels, F H W latent frames, rows and columns; lower case: of a tile, or of
the part of a video that is final.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from longtake.configs.request import ResolvedDecode
from longtake.errors import RequestError, Stopped
from longtake.parallel import GatherStream, World
from longtake.pipelines.codec.memory import free_bytes
from longtake.pipelines.codec.tile_blender import TileBlender
from longtake.pipelines.codec.tiles import Spans, Tile, TileCoder, TilePlan
from longtake.pipelines.finite import check_frames
from longtake.pipelines.runtime.progress import OnProgress, Progress, StopRequested, never
from longtake.pipelines.runtime.stages import StageReport, stage

OnFrame = Callable[[int, int, torch.Tensor], None]
"""Receives the index of a video, of a frame, and the frame: ``[height, width, 3]`` in [0, 1]."""

OnValues = Callable[[int, torch.Tensor], bool]
"""Receives the index of a video and its next final values, ``[C, f, H, W]`` on the CPU; returns
whether to continue."""

_MAX_TILES_AT_ONCE = 4
_KERNEL_OVERHEAD = {"cuda": 1.5, "cpu": 2.0}
"""Peak memory divided by the memory of tensors, because of the workspace of kernels. Measured 1.47
on an H100 in float16, where cuDNN transposes a convolution's input and output."""


@dataclass(frozen=True)
class TileRun:
    """One pass of videos through an encoder or a decoder, as one rank sees it.

    Attributes:
        coder: The encoder or decoder.
        videos: ``[B, C, F, H, W]``, pixels in [-1, 1] or latents, identical on all ranks.
        world: All ranks.
        on_progress: Called with the number of completed tiles: on rank 0, of all ranks; on
            others, of this rank, also while it waits for rank 0.
        stop_requested: Polled between tiles and, on rank 0, between decoded frames; if it returns
            true on any rank, all stop.
        tiles_at_once: Maximum number of tiles that this rank computes at once; None is as many as
            fit in memory.
    """

    coder: TileCoder
    videos: torch.Tensor
    world: World
    on_progress: OnProgress = lambda progress: None
    stop_requested: StopRequested = never
    tiles_at_once: int | None = None

    @property
    def batch_size(self) -> int:
        """Number of tiles that this rank computes at once."""
        return self.tiles_at_once or _tiles_that_fit(self.coder, self.videos)


@torch.no_grad()
def decode_videos(
    run: TileRun,
    on_frame: OnFrame,
    report: StageReport | None = None,
    *,
    dropped_frames: int = 0,
) -> None:
    """Decode latents. Collective: all ranks call it; rank 0 receives the frames.

    Args:
        run: The pass of the latents, float32, through the decoder.
        on_frame: Called on rank 0 with each frame, in order, while later frames are decoded.
        report: Receives the stage "decoding", excluding the time spent in ``on_frame``, and
            ``tiles_at_once``.
        dropped_frames: Number of frames discarded at the start of each video.

    Raises:
        Stopped: On all ranks; ``stop_requested`` returned true on one of them.
        EngineError: On rank 0; the decoded values are not finite.
        PeerLostError: Another rank died or was silent for too long.
    """
    report = report or StageReport()
    frames = _FrameOutput(on_frame, run.stop_requested, [-dropped_frames] * len(run.videos))
    report.tiles_at_once = run.batch_size
    with stage(report, "decoding"):
        run_tiles(replace(run, tiles_at_once=report.tiles_at_once), frames.add)
    report.seconds["decoding"] -= frames.callback_s


class _FrameOutput:
    """Splits decoded values into frames and passes them to ``on_frame``.

    Args:
        on_frame: Receives the frames.
        stop_requested: Polled before each frame.
        first: Index of the first decoded frame of each video; negative ones are dropped.

    Attributes:
        callback_s: Time spent in ``on_frame``.
    """

    def __init__(
        self, on_frame: OnFrame, stop_requested: StopRequested, first: Sequence[int]
    ) -> None:
        self._on_frame = on_frame
        self._stop_requested = stop_requested
        self._next = list(first)
        self.callback_s = 0.0

    def add(self, video: int, values: torch.Tensor) -> bool:
        """Output ``[3, f, H, W]``, which is modified; returns whether to continue."""
        frames = check_frames(values).div_(2).add_(0.5).clamp_(0, 1)
        for frame in frames.permute(1, 2, 3, 0).float():
            if self._stop_requested():
                return False
            if self._next[video] >= 0:
                begun = time.perf_counter()
                self._on_frame(video, self._next[video], frame)
                self.callback_s += time.perf_counter() - begun
            self._next[video] += 1
        return True


@torch.no_grad()
def encode_videos(encoder: TileCoder, pixels: torch.Tensor, world: World) -> torch.Tensor:
    """Encode pictures or videos. Collective: all ranks call it.

    Args:
        encoder: Tile coder from pixels to latents or their moments.
        pixels: ``[B, 3, frames, height, width]`` in [-1, 1], identical on all ranks.
        world: All ranks.

    Returns:
        What the encoder gives, ``[B, C, F, H, W]``, on every rank.

    Raises:
        PeerLostError: Another rank died or was silent for too long.
    """
    parts: list[list[torch.Tensor]] = [[] for _ in pixels]

    def add(video: int, values: torch.Tensor) -> bool:
        parts[video].append(values)
        return True

    run_tiles(TileRun(encoder, pixels, world), add)
    moments = None
    if world.rank == 0:
        moments = {"moments": torch.stack([torch.cat(each, dim=1) for each in parts])}
    return world.broadcast_tensors(moments)["moments"]


def check_decode_memory(
    decoder: TileCoder, latents_shape: Sequence[int], request: ResolvedDecode, world: World
) -> None:
    """Check that untiled decoding fits in memory. Collective; called before denoising.

    Args:
        decoder: The decoder, with the request's tiling.
        latents_shape: B, C, F, H, W.
        request: The decoding mode, and the video's size for the error message.
        world: All ranks.

    Raises:
        RequestError: On all ranks; the decoder needs more memory than a rank has free.
    """
    if request.decode == "tiled":
        return
    num_videos, channels, *size = latents_shape
    plan = TilePlan(decoder.spans(size), num_videos, world.size)
    needed = _tile_bytes(decoder, plan.spans, channels, world.device)
    decoding_ranks = set(plan.owners)
    free = free_bytes(world.device)
    if world.device.type == "cpu":  # the ranks of a host share its memory
        free //= max(1, len(decoding_ranks.intersection(world.host_ranks)))
    by_rank = world.gather_json(free)
    least = min(by_rank[rank] for rank in decoding_ranks)
    if needed > least:
        raise RequestError(
            f"decode={request.decode} needs about {needed / 2**30:.1f} GiB for "
            f"{request.num_frames} frames of {request.width}x{request.height}, and "
            f"{least / 2**30:.1f} GiB are free on a rank: try decode=tiled"
        )


def run_tiles(run: TileRun, on_values: OnValues) -> None:
    """Compute the tiles on all ranks and blend them on rank 0. Collective: all ranks call it.

    Args:
        run: The pass.
        on_values: Called on rank 0 with the blended values, in order.

    Raises:
        Stopped: On all ranks; ``stop_requested`` returned true, or ``on_values`` false.
        PeerLostError: Another rank died or was silent for too long.
    """
    coder, world = run.coder, run.world
    plan = TilePlan(coder.spans(run.videos.shape[2:]), len(run.videos), world.size)
    shapes = [(coder.channels, *tile.output_shape) for tile in plan.tiles]
    stream = GatherStream(world, plan.owners, shapes, coder.dtype)
    if world.rank == 0:
        stopped = _blend_all(run, plan, stream, on_values)
    else:
        stopped = _send_own(run, plan, stream)
    if stream.close(stopped):
        raise Stopped("stopped between frames")


def _send_own(run: TileRun, plan: TilePlan, stream: GatherStream) -> bool:
    """Compute this rank's tiles and send them to rank 0; returns whether a stop was requested."""
    own = plan.tiles_of(run.world.rank)
    values, total = _compute(run, own), len(own)
    for done in range(total):
        run.on_progress(Progress("decoding", done, total))
        if stream.stop_requested or run.stop_requested():
            return True
        computed = next(values)
        run.on_progress(Progress("waiting", done + 1, total))
        stream.put(computed)
    run.on_progress(Progress("waiting", total, total))
    return False


def _blend_all(run: TileRun, plan: TilePlan, stream: GatherStream, on_values: OnValues) -> bool:
    """Blend rank 0's own tiles and those received; returns whether a stop was requested."""
    own, total = _compute(run, plan.tiles_of(0)), len(plan.tiles)
    for number, (tile, owner) in enumerate(zip(plan.tiles, plan.owners, strict=True)):
        run.on_progress(Progress("decoding", number, total))
        if run.stop_requested():
            return True
        values = next(own) if owner == 0 else stream.take(number)
        if values is None:
            return True
        if tile.index == (0, 0, 0):
            blender = TileBlender(plan.spans)
        final = blender.add(tile, values)
        if final is not None and not on_values(tile.video, run.coder.finish(final)):
            return True
    run.on_progress(Progress("decoding", total, total))
    return False


def _compute(run: TileRun, tiles: Sequence[Tile]) -> Iterator[torch.Tensor]:
    """Compute tiles lazily; yields the trimmed values of each, ``[C, f, h, w]`` on the CPU.

    On a GPU the next batch is launched before the current one is awaited, so the GPU computes while
    the host sends or blends. The batch size is halved if memory is exhausted.
    """
    batch_size, in_flight_limit = run.batch_size, 1 if run.videos.is_cuda else 0
    remaining, in_flight = deque(tiles), deque[list[_HostCopy]]()
    while remaining:
        batch = _next_batch(remaining, batch_size)
        try:
            values = run.coder.run(torch.stack([tile.slice_input(run.videos) for tile in batch]))
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                raise
            batch_size = len(batch) // 2
            continue
        in_flight.append(
            [_HostCopy(tile.trim_output(each)) for tile, each in zip(batch, values, strict=True)]
        )
        for _ in batch:
            remaining.popleft()
        if len(in_flight) > in_flight_limit:
            yield from (copy.wait() for copy in in_flight.popleft())
    yield from (copy.wait() for copies in in_flight for copy in copies)


def _next_batch(tiles: Sequence[Tile], max_size: int) -> list[Tile]:
    """The leading tiles that have the same shape and cover the same frames.

    Tiles of later frames would delay the output of the current ones.
    """
    first = tiles[0]
    alike = itertools.takewhile(
        lambda tile: (
            (tile.video, tile.index[0], tile.input_shape)
            == (first.video, first.index[0], first.input_shape)
        ),
        tiles,
    )
    return list(itertools.islice(alike, max_size))


class _HostCopy:
    """An asynchronous copy of a tensor to host memory."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._values, self._copied = tensor, None
        if tensor.is_cuda:
            host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._values = host.copy_(tensor, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()

    def wait(self) -> torch.Tensor:
        """The copy, once complete."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._values


def _tiles_that_fit(coder: TileCoder, videos: torch.Tensor) -> int:
    """Number of tiles to compute at once: as many as fit in the GPU's memory, at most four.

    One on a CPU, where torch's batched kernels round differently (1e-5 in float32) and are no
    faster.
    """
    if not videos.is_cuda:
        return 1
    needed = _tile_bytes(coder, coder.spans(videos.shape[2:]), videos.shape[1], videos.device)
    return int(max(1, min(_MAX_TILES_AT_ONCE, free_bytes(videos.device) // needed)))


def _tile_bytes(coder: TileCoder, spans: Spans, channels: int, device: torch.device) -> int:
    """Peak memory of computing the largest tile, in bytes."""
    largest = [max(span.input_size for span in axis) for axis in spans]
    tensors = coder.peak_bytes((1, channels, *largest), device)
    return int(tensors * _KERNEL_OVERHEAD[device.type])
