"""Requests for the tiny Wans, and their renderings by diffusers and by longtake."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from PIL import Image

from longtake.configs.request import ResolvedRequest, VideoRequest
from longtake.engine.media.pictures.picture import noise_pictures
from longtake.engine.resolve.request import resolve
from longtake.pipelines import registry
from longtake.pipelines.loading.checkpoint import Checkpoint
from longtake.pipelines.models.wan.options import WanExpertsOptions
from tests import tiny_wan
from tests.rendering import ALONE, ONE_RANK, Array, decode, load_pipeline, render

KINDS: dict[str, tuple[str, ...]] = {
    "wan21-t2v": (),
    "wan21-i2v": ("image",),
    "wan21-flf2v": ("image", "last_image"),
    "wan22-t2v": (),
    "wan22-i2v": ("image",),
    "wan22-i2v last": ("image", "last_image"),
    "wan22-ti2v": (),
    "wan22-ti2v picture": ("image",),
}
"""By kind of checkpoint, and what follows a space: the pictures of a request."""


def wan_request(folder: str, pictures: Sequence[str] = (), **fields: Any) -> ResolvedRequest:
    """A resolved request for a tiny Wan; without tiles unless it asks for them.

    Args:
        folder: Folder of the model.
        pictures: Request fields of the pictures that it has; their content is noise.
        fields: Other fields of the request.
    """
    settings: dict[str, Any] = dict(
        prompt="a cat walks on the grass, slowly", negative_prompt="red", seed=3, decode="whole"
    )
    spec = registry.inspect(Checkpoint.open(folder))
    paths = {name: f"/{name}.png" for name in pictures}
    resolved = resolve(VideoRequest(**{**settings, **paths, **fields}), spec)
    digests = {f"{name}_sha256": "0" * 64 for name in pictures}
    return resolved.model_copy(update=digests)


def longtake_render(folder: str, resolved: ResolvedRequest) -> tuple[Array, Array]:
    """Latents and frames of a request on one rank, with pictures of noise."""
    pipeline = load_pipeline(folder, False)
    latents = render(pipeline, resolved, ONE_RANK, ALONE)
    return latents.numpy(), decode(pipeline, latents, resolved, ALONE)


@cache
def _reference(folder: str, takes_picture: bool) -> Any:
    return tiny_wan.reference(folder, takes_picture=takes_picture)


@torch.no_grad()
def diffusers_render(
    folder: str, resolved: ResolvedRequest, pictures: tuple[str, ...], output_type: str
) -> Array:
    """Latents or frames of a request by diffusers' pipeline."""
    pipeline = _reference(folder, bool(pictures))
    options = WanExpertsOptions.of(resolved)
    own = pipeline.scheduler
    if options.sampler == "euler":
        pipeline.scheduler = FlowMatchEulerDiscreteScheduler(shift=resolved.flow_shift)
    else:
        pipeline.scheduler = type(own).from_config(own.config, flow_shift=resolved.flow_shift)
    pipeline.vae.disable_tiling()
    if resolved.decode == "tiled":
        pipeline.vae.enable_tiling()
    arguments: dict[str, Any] = {
        name: Image.fromarray(pixels) for name, pixels in noise_pictures(resolved, pictures).items()
    }
    if pipeline.config.boundary_ratio is not None:
        arguments["guidance_scale_2"] = options.guidance_scale_2
    try:
        frames: Array = pipeline(
            prompt=[resolved.prompt] * resolved.num_videos,  # image keys refuse several of one
            negative_prompt=[resolved.negative_prompt or ""] * resolved.num_videos,
            height=resolved.height,
            width=resolved.width,
            num_frames=resolved.num_frames,
            num_inference_steps=resolved.num_inference_steps,
            guidance_scale=resolved.guidance_scale,
            generator=torch.Generator().manual_seed(resolved.seed),
            output_type=output_type,
            **arguments,
        ).frames
    finally:
        pipeline.scheduler = own
    return frames if output_type == "np" else np.asarray(frames)
