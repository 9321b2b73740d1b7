"""What the denoiser is trained on: encoded clips of random scenes."""

from __future__ import annotations

import os
import random
from pathlib import Path

import torch
from diffusers import AutoencoderKLHunyuanVideo
from safetensors.torch import load_file, save_file

from training.demo import model
from training.demo.scenes import Scene, render

CLIPS = 3072
_CHUNK = 64
_AT_ONCE = 8


class Latents:
    """Clips that are encoded once, in files of 64 that a run goes on from."""

    def __init__(self, vae: AutoencoderKLHunyuanVideo, folder: Path) -> None:
        """Encode the clips, or read those that a run before has encoded.

        Args:
            folder: of the files.
        """
        chunks = range(CLIPS // _CHUNK)
        latents = [_chunk(vae, folder / f"latents-{at:02d}.safetensors", at) for at in chunks]
        self._latents = torch.cat(latents) * float(vae.config.scaling_factor)
        self._scenes = [scene for at in chunks for scene in _scenes(at)[0]]

    def batch(self, rng: random.Random, size: int) -> tuple[torch.Tensor, list[Scene]]:
        """Some clips, ``[B, C, F, H, W]``, float32, of deviation 1, and what they show."""
        picked = [rng.randrange(CLIPS) for _ in range(size)]
        return self._latents[picked], [self._scenes[at] for at in picked]


def _scenes(at: int) -> tuple[list[Scene], random.Random]:
    rng = random.Random(f"latents {at}")
    return [Scene.draw(rng) for _ in range(_CHUNK)], rng


@torch.no_grad()
def _chunk(vae: AutoencoderKLHunyuanVideo, file: Path, at: int) -> torch.Tensor:
    if not file.is_file():
        scenes, rng = _scenes(at)
        clips = render(scenes, rng, **model.SIZE) * 2 - 1
        clips = clips.contiguous(memory_format=torch.channels_last_3d)
        latents = torch.cat([vae.encode(some).latent_dist.mean for some in clips.split(_AT_ONCE)])
        partial = file.with_suffix(".partial")
        save_file({"latents": latents.contiguous()}, partial)
        os.replace(partial, file)
    return load_file(file)["latents"]
