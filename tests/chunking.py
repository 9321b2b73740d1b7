"""One pass of a tiny HunyuanVideo whose feed-forwards run over chunks of few tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from longtake.parallel import ParallelDims, World
from longtake.pipelines.layout import VideoLayout
from longtake.pipelines.loading.weights import shard_module
from longtake.pipelines.models.hunyuan_video.transformer.denoiser import HunyuanVideoDenoiser
from longtake.pipelines.spec import LatentGrid
from tests import tiny
from tests.ranks import mesh_of, random_tensors
from tests.rendering import ALONE, first_step, request, world

TEXT_TOKENS = 7


@dataclass(frozen=True)
class Case:
    """One pass.

    Attributes:
        conditioning: "token_replace", or None for text to video.
        num_videos: Number of videos.
    """

    conditioning: str | None = None
    num_videos: int = 1


CASES = [Case(), Case(num_videos=2), Case("token_replace"), Case("token_replace", num_videos=2)]


def new_denoiser(
    case: Case, tokens_per_chunk: int | None, ranks: World | None = None
) -> HunyuanVideoDenoiser:
    """A denoiser; loaded, sharded over some ranks, then wrapped, in the order of loading.

    Args:
        case: The pass.
        tokens_per_chunk: Size of a chunk; None leaves the feed-forwards unwrapped.
        ranks: Ranks that the weights are sharded over; None keeps them whole.
    """
    transformer = tiny.transformer(image_condition_type=case.conditioning)
    denoiser = HunyuanVideoDenoiser(transformer, tokens_per_chunk=tokens_per_chunk or 10**9)
    if ranks is not None:
        shard_module(denoiser, denoiser.chains[0], ranks)
    if tokens_per_chunk is not None:
        denoiser.chunk_feed_forwards()
    return denoiser


@torch.no_grad()
def velocity(case: Case, dims: ParallelDims, denoiser: HunyuanVideoDenoiser) -> torch.Tensor:
    """The velocity of the whole videos over all ranks, gathered."""
    grid = LatentGrid((case.num_videos, 4, 3, 6, 10), (1, 2, 2))
    shapes = [grid.shape, (1, TEXT_TOKENS, 16), (1, 8), (1, 4, 1, 6, 10)]
    latents, text, pooled, image = random_tensors(3, shapes)
    mesh = mesh_of(dims) if dims.world_size > 1 else None
    layout = VideoLayout.of(grid, dims, mesh)
    dtype = denoiser.transformer.dtype
    streams = {"text": text.to(dtype), "pooled": pooled.to(dtype)}
    inputs = denoiser.prepare(streams, layout, request(), {"image": image})
    return layout.gather(denoiser(layout.split(latents), first_step(), inputs))


def sharded_velocities(
    cases: list[Case], tokens_per_chunk: int, dims: ParallelDims
) -> list[torch.Tensor]:
    """The velocities with weights that are sharded over all ranks."""
    ranks = world() if dims.world_size > 1 else ALONE
    return [velocity(case, dims, new_denoiser(case, tokens_per_chunk, ranks)) for case in cases]
