"""One pass of tiny Wan transformers, by longtake on any number of ranks and by diffusers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from diffusers import WanTransformer3DModel

from longtake.configs.request import ResolvedRequest
from longtake.parallel import ParallelDims
from longtake.pipelines.layout import VideoLayout
from longtake.pipelines.models.wan.transformer.denoiser import WanDenoiser
from longtake.pipelines.models.wan.transformer.experts import WanPass
from longtake.pipelines.runtime.stepper import Step
from longtake.pipelines.spec import LatentGrid
from tests import tiny_wan
from tests.ranks import mesh_of, random_tensors
from tests.rendering import request

Tensors = dict[str, torch.Tensor]

PATCH = (1, 2, 2)
BOUNDARY = 900.0
"""Timestep below which the low-noise expert of tiny models runs."""

REQUEST: ResolvedRequest = request()

SIZES = {
    "18 tokens": (1, 2, 6, 6),
    "45 tokens": (2, 5, 6, 6),
    "2 tokens": (3, 1, 4, 2),
}
"""Videos, and their latent frames, rows and columns."""


@dataclass(frozen=True)
class Case:
    """One pass of one model.

    Attributes:
        kind: A name in :data:`tests.tiny_wan.KINDS`.
        size: Videos, latent frames, rows and columns.
        timestep: The timestep.
        has_picture: Whether a model with a timestep per token is given the first frame.
    """

    kind: str
    size: tuple[int, int, int, int]
    timestep: float | int = 951
    has_picture: bool = False

    @property
    def grid(self) -> LatentGrid:
        """The latent grid."""
        batch, *size = self.size
        channels = self.settings.get("out_channels", 4)
        return LatentGrid((batch, channels, *size), PATCH)

    @property
    def settings(self) -> dict[str, Any]:
        """Changes to the configuration of the transformers."""
        return tiny_wan.KINDS[self.kind].transformer

    @property
    def step(self) -> Step:
        """The step with the case's timestep."""
        return Step(0, torch.tensor(self.timestep), float(self.timestep))

    def latents(self) -> torch.Tensor:
        """Noisy latents, ``[B, C, F, H, W]``."""
        return random_tensors(10, [self.grid.shape])[0]

    def streams(self) -> Tensors:
        """Text padded with zeros and, with an image encoder, the tokens of the pictures."""
        (text,) = random_tensors(11, [(1, tiny_wan.TEXT_TOKENS, 16)])
        text[:, 7:] = 0
        if not tiny_wan.KINDS[self.kind].image_keys:
            return {"text": text}
        pictures = 2 if "pos_embed_seq_len" in self.settings else 1
        shape = (1, pictures * tiny_wan.IMAGE_TOKENS, tiny_wan.IMAGE_WIDTH)
        return {"text": text, "image": random_tensors(12, [shape])[0]}

    def pictures(self) -> Tensors:
        """The condition beside the noise, or the first frame, ``[1, ...]``."""
        _, channels, *size = self.grid.shape
        if tiny_wan.KINDS[self.kind].takes_picture:
            extra = self.settings["in_channels"] - channels
            return {"condition": random_tensors(13, [(1, extra, *size)])[0]}
        if self.has_picture:
            return {"first_frame": random_tensors(14, [(1, channels, 1, *size[1:])])[0]}
        return {}


def cases(*sizes: str) -> list[Case]:
    """A case for each kind of model, and for each size by name."""
    kinds = [*((kind, False) for kind in tiny_wan.KINDS), ("wan22-ti2v", True)]
    return [
        Case(kind, SIZES[size], has_picture=has_picture)
        for kind, has_picture in kinds
        for size in sizes
    ]


@cache
def transformers(kind: str) -> dict[str, WanTransformer3DModel]:
    """diffusers' transformers of a kind, by component; their attention is diffusers' own."""
    made = tiny_wan.KINDS[kind]
    return {
        name: tiny_wan.transformer(seed, **made.transformer)
        for seed, name in enumerate(("transformer", "transformer_2")[: made.experts])
    }


def new_denoiser(kind: str, tokens_per_chunk: int = 14) -> WanDenoiser:
    """A denoiser with the weights of :func:`transformers`, and chunks of few tokens."""
    made = tiny_wan.KINDS[kind]
    copies = {
        name: tiny_wan.transformer(seed, **made.transformer)
        for seed, name in enumerate(transformers(kind))
    }
    model = WanDenoiser(copies, BOUNDARY, tokens_per_chunk=tokens_per_chunk)
    model.chunk_feed_forwards()
    return model


denoiser = cache(new_denoiser)


@torch.no_grad()
def velocity_of_diffusers(
    case: Case, models: Mapping[str, WanTransformer3DModel] | None = None
) -> torch.Tensor:
    """The velocity of the whole video as diffusers' pipelines compute it, ``[B, C, F, H, W]``.

    Args:
        case: The pass.
        models: Transformers with diffusers' attention, in any dtype; by default the kind's own.
    """
    models = models or transformers(case.kind)
    batch, latents, streams = case.size[0], case.latents(), case.streams()
    pictures = {name: each.expand(batch, -1, -1, -1, -1) for name, each in case.pictures().items()}
    timestep = torch.tensor(case.timestep).expand(batch)
    if "condition" in pictures:
        latents = torch.cat([latents, pictures["condition"]], dim=1)
    if case.kind == "wan22-ti2v":
        mask = torch.ones(case.grid.shape)
        if case.has_picture:
            mask[:, :, 0] = 0
            latents = (1 - mask) * pictures["first_frame"] + mask * latents
        timestep = (mask[:, 0, :, ::2, ::2] * case.timestep).flatten(1)
    image = streams.get("image")
    if image is not None:
        image = image.view(-1, tiny_wan.IMAGE_TOKENS, tiny_wan.IMAGE_WIDTH).repeat(batch, 1, 1)
    low = case.timestep < BOUNDARY and "transformer_2" in models
    model = models["transformer_2" if low else "transformer"]
    velocity: torch.Tensor = model(
        hidden_states=latents.to(model.dtype),
        timestep=timestep,
        encoder_hidden_states=streams["text"].expand(batch, -1, -1).to(model.dtype),
        encoder_hidden_states_image=None if image is None else image.to(model.dtype),
        return_dict=False,
    )[0]
    return velocity


def prepare(model: WanDenoiser, case: Case, layout: VideoLayout) -> WanPass:
    """The inputs of a pass."""
    return model.prepare(case.streams(), layout, REQUEST, case.pictures())


@torch.no_grad()
def velocity(case: Case, dims: ParallelDims, model: WanDenoiser | None = None) -> torch.Tensor:
    """The velocity of the whole video over all ranks, gathered: ``[B, C, F, H, W]``."""
    model = model or denoiser(case.kind)
    mesh = mesh_of(dims) if dims.world_size > 1 else None
    layout = VideoLayout.of(case.grid, dims, mesh)
    inputs = prepare(model, case, layout)
    return layout.gather(model(layout.split(case.latents()), case.step, inputs))
