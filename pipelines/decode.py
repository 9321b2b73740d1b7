"""Tiles over all ranks: decoded, brought to rank 0 in order, mixed there, given away as frames.

Legend: B videos, C channels, F H W latent frames, rows and columns of whole videos; lower case of
a tile, or of what is final of a video so far.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence

import torch

from longtake.configs.request import ResolvedDecode
from longtake.errors import RequestError, Stopped
from longtake.parallel import GatherStream, World
from longtake.pipelines.base import check_frames
from longtake.pipelines.memory import free_bytes, peak_bytes
from longtake.pipelines.progress import OnProgress, Progress
from longtake.pipelines.stages import StageReport, stage
from longtake.pipelines.tile_blender import TileBlender
from longtake.pipelines.tiles import Spans, Tile, TileCoder, TilePlan

TakeFrame = Callable[[int, int, torch.Tensor], None]
"""Takes the number of a video, of a frame, and the frame: ``[height, width, 3]`` in [0, 1]."""

_MOST_AT_ONCE = 4
_WITH_KERNELS = {"cuda": 1.5, "cpu": 2.0}
"""What kernels take for themselves comes on top of tensors: 1.47 on an H100 in float16, where cuDNN
turns a convolution's input and output round."""


@torch.no_grad()
def decode_videos(
    decoder: TileCoder,
    latents: torch.Tensor,
    world: World,
    report: StageReport,
    take_frame: TakeFrame,
    *,
    dropped_frames: int = 0,
    on_progress: OnProgress = lambda progress: None,
    stop_requested: Callable[[], bool] = lambda: False,
    at_once: int | None = None,
) -> None:
    """Decode videos on all ranks together; rank 0 gives away frames while later ones are decoded.

    Args:
        decoder: gives pixels in [-1, 1].
        latents: ``[B, C, F, H, W]``, float32, the same on all ranks.
        report: filled with the stage "decoding", of rank 0 without the time that ``take_frame``
            takes, and with the tiles that this rank computes at once.
        take_frame: called on rank 0, in order.
        dropped_frames: at the start of each video, which are not given away.
        on_progress: called on each rank, with its own tiles; on rank 0 with all of them.
        stop_requested: asked on each rank between tiles, on rank 0 between frames, too.
        at_once: tiles that a rank computes at once, at most; as many as fit if None.

    Raises:
        Stopped: on all ranks alike, because of ``stop_requested`` on any.
        EngineError: on rank 0, the decoder's values are not finite.
        PeerLostError: another rank died or was silent for too long.
    """
    given_s, next_frame = 0.0, [-dropped_frames] * len(latents)

    def take(video: int, values: torch.Tensor) -> bool:
        """Give away ``[3, f, H, W]``, which is changed; returns whether to go on."""
        nonlocal given_s
        frames = check_frames(values).div_(2).add_(0.5).clamp_(0, 1)
        for frame in frames.permute(1, 2, 3, 0).float():
            if stop_requested():
                return False
            begun = time.perf_counter()
            if next_frame[video] >= 0:
                take_frame(video, next_frame[video], frame)
            given_s += time.perf_counter() - begun
            next_frame[video] += 1
        return True

    report.tiles_at_once = at_once or _tiles_at_once(decoder, latents)
    with stage(report, "decoding"):
        code_tiles(
            decoder,
            latents,
            world,
            take,
            at_once=report.tiles_at_once,
            on_progress=on_progress,
            stop_requested=stop_requested,
        )
    report.seconds["decoding"] -= given_s


@torch.no_grad()
def encode_videos(encoder: TileCoder, pixels: torch.Tensor, world: World) -> torch.Tensor:
    """Encode pictures or videos on all ranks together.

    Args:
        encoder: gives the moments of latents.
        pixels: ``[B, 3, frames, height, width]`` in [-1, 1], the same on all ranks.

    Returns:
        ``[B, 2 C, F, H, W]``: the moments of the latents (mean, then logarithm of the
        variance), in the autoencoder's dtype, on every rank.

    Raises:
        PeerLostError: another rank died or was silent for too long.
    """
    coded: list[list[torch.Tensor]] = [[] for _ in pixels]

    def take(video: int, values: torch.Tensor) -> bool:
        coded[video].append(values)
        return True

    code_tiles(encoder, pixels, world, take, at_once=_tiles_at_once(encoder, pixels))
    moments = None
    if world.rank == 0:
        moments = {"moments": torch.stack([torch.cat(parts, dim=1) for parts in coded])}
    return world.broadcast_tensors(moments)["moments"]


def check_fits(
    decoder: TileCoder, latents_shape: Sequence[int], request: ResolvedDecode, world: World
) -> None:
    """Refuse, on all ranks alike and before denoising, what does not fit in memory untiled.

    Called by all ranks together.

    Args:
        decoder: in the request's tiles.
        latents_shape: B, C, F, H, W.

    Raises:
        RequestError: the decoder would need more memory than a rank has free.
    """
    if request.decode == "tiled":
        return
    num_videos, channels, *size = latents_shape
    plan = TilePlan(decoder.spans(size), num_videos, world.size)
    needed = _needed_bytes(decoder, plan.spans, channels, world.device)
    users = set(plan.owners)
    free = free_bytes(world.device)
    if world.device.type == "cpu":  # which the ranks of a host share
        free //= max(1, len(users.intersection(world.host_ranks)))
    frees = [each for rank, each in enumerate(world.gather_json(free)) if rank in users]
    if needed > min(frees):
        raise RequestError(
            f"decode={request.decode} needs about {needed / 2**30:.1f} GiB for "
            f"{request.num_frames} frames of {request.width}x{request.height}, and "
            f"{min(frees) / 2**30:.1f} GiB are free on a rank: try decode=tiled"
        )


def code_tiles(
    coder: TileCoder,
    videos: torch.Tensor,
    world: World,
    take: Callable[[int, torch.Tensor], bool],
    *,
    on_progress: OnProgress = lambda progress: None,
    stop_requested: Callable[[], bool] = lambda: False,
    at_once: int = 1,
) -> None:
    """Run videos through one direction of an autoencoder, in tiles over all ranks.

    Args:
        videos: ``[B, C, F, H, W]``, the same on all ranks.
        take: called on rank 0 with a video's number and its next final values,
            ``[C, f, H, W]`` on the CPU; returns whether to go on.
        on_progress: called with the number of tiles that are done, and of all; on another rank than
            the first, of its own, and also while it waits for the first.
        at_once: tiles that this rank computes at once, at most.

    Raises:
        Stopped: on all ranks alike.
    """
    plan = TilePlan(coder.spans(videos.shape[2:]), len(videos), world.size)
    shapes = [(coder.channels, *tile.values_shape) for tile in plan.tiles]
    stream = GatherStream(world, plan.owners, shapes, coder.dtype)
    own = _own_values(coder, videos, plan.of_rank(world.rank), at_once)
    if world.rank == 0:
        stopped = _put_together(coder, plan, own, stream, take, on_progress, stop_requested)
    else:
        total = plan.owners.count(world.rank)
        stopped = _hand_over(own, total, stream, on_progress, stop_requested)
    if stream.close(stopped):
        raise Stopped("stopped between frames")


def _hand_over(
    own: Iterator[torch.Tensor],
    total: int,
    stream: GatherStream,
    on_progress: OnProgress,
    stop_requested: Callable[[], bool],
) -> bool:
    """On a rank but the first: compute its tiles and send them; returns whether it was stopped."""
    for done in range(total):
        on_progress(Progress("decoding", done, total))
        if stream.stop_requested or stop_requested():
            return True
        values = next(own)
        on_progress(Progress("waiting", done + 1, total))
        stream.put(values)
    on_progress(Progress("waiting", total, total))
    return False


def _put_together(
    coder: TileCoder,
    plan: TilePlan,
    own: Iterator[torch.Tensor],
    stream: GatherStream,
    take: Callable[[int, torch.Tensor], bool],
    on_progress: OnProgress,
    stop_requested: Callable[[], bool],
) -> bool:
    """On rank 0: compute its tiles, take the others', mix all; returns whether it was stopped."""
    total = len(plan.tiles)
    for number, (tile, owner) in enumerate(zip(plan.tiles, plan.owners, strict=True)):
        on_progress(Progress("decoding", number, total))
        if stop_requested():
            return True
        values = next(own) if owner == 0 else stream.take(number)
        if values is None:
            return True
        if tile.place == (0, 0, 0):
            mosaic = TileBlender(plan.spans)
        final = mosaic.add(tile, values)
        if final is not None and not take(tile.video, coder.finish(final)):
            return True
    on_progress(Progress("decoding", total, total))
    return False


def _own_values(
    coder: TileCoder, videos: torch.Tensor, tiles: Sequence[Tile], at_once: int
) -> Iterator[torch.Tensor]:
    """The values of each tile, trimmed, ``[C, f, h, w]`` on the CPU, as they are asked for.

    A GPU is given the next tiles before these are waited for, so that it computes on while these
    are sent or mixed. Where it has no memory for so many at once, it gets fewer.
    """
    ahead = 1 if videos.is_cuda else 0
    left, begun = deque(tiles), deque[list[_OnHost]]()
    while left:
        batch = _alike(left, at_once)
        try:
            values = coder.code(torch.stack([tile.cells_of(videos) for tile in batch]))
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                raise
            at_once = len(batch) // 2
            continue
        begun.append(
            [_OnHost(tile.trimmed(each)) for tile, each in zip(batch, values, strict=True)]
        )
        for _ in batch:
            left.popleft()
        if len(begun) > ahead:
            yield from (each.values() for each in begun.popleft())
    yield from (each.values() for batch_begun in begun for each in batch_begun)


def _alike(tiles: Sequence[Tile], most: int) -> list[Tile]:
    """The first tiles that can be computed at once: of one shape, and of the same frames, which
    else would have to wait for later ones."""
    first = tiles[0]
    same = itertools.takewhile(
        lambda tile: (
            (tile.video, tile.place[0], tile.cells_shape)
            == (first.video, first.place[0], first.cells_shape)
        ),
        tiles,
    )
    return list(itertools.islice(same, most))


class _OnHost:
    """A tensor on its way to the host's memory."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._values, self._copied = tensor, None
        if tensor.is_cuda:
            host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._values = host.copy_(tensor, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()

    def values(self) -> torch.Tensor:
        """The tensor, once it is there."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._values


def _tiles_at_once(coder: TileCoder, videos: torch.Tensor) -> int:
    """How many tiles a rank computes at once: as many as fit in its GPU's memory, four at most.

    On a CPU one: torch has other kernels there for several, which round otherwise (1e-5 in
    float32) and are no faster.
    """
    if not videos.is_cuda:
        return 1
    needed = _needed_bytes(coder, coder.spans(videos.shape[2:]), videos.shape[1], videos.device)
    return int(max(1, min(_MOST_AT_ONCE, free_bytes(videos.device) // needed)))


def _needed_bytes(coder: TileCoder, spans: Spans, channels: int, device: torch.device) -> int:
    """What the largest tile takes while it is computed."""
    largest = [max(span.num_cells for span in axis) for axis in spans]
    tensors = peak_bytes(coder.code, (1, channels, *largest), device)
    return int(tensors * _WITH_KERNELS[device.type])
