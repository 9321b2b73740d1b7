"""Training data of the denoisers: encoded clips of random scenes."""

from __future__ import annotations

import os
import random
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKLHunyuanVideo
from safetensors.torch import load_file, save_file

from training.demo import model
from training.demo.scenes import ANY_TRAVEL_PX, TRAVEL_PX, Scene, render

CLIPS = 3072
_CHUNK = 64
_AT_ONCE = 8


@dataclass(frozen=True)
class Batch:
    """A batch of clips.

    Attributes:
        latents: ``[B, C, F, H, W]``, float32, standard deviation 1.
        scenes: Scenes that the clips show.
        pictures: First frames, ``[B, 3, H, W]`` in [-1, 1]; None for text-to-video training.
    """

    latents: torch.Tensor
    scenes: list[Scene]
    pictures: torch.Tensor | None


class Latents:
    """Clips that are encoded once and cached in files of 64 clips."""

    def __init__(
        self, vae: AutoencoderKLHunyuanVideo, folder: Path, *, from_pictures: bool = False
    ) -> None:
        """Encode the clips, or read them from the cache.

        Args:
            vae: The trained autoencoder.
            folder: Folder of the cache files.
            from_pictures: Whether the clips are for image-to-video: the first latent frame encodes
                the first frame only, as at inference, and travel may be short, so that shapes start
                anywhere.
        """
        chunks = [_Chunk(at, from_pictures) for at in range(CLIPS // _CHUNK)]
        latents = [chunk.latents(vae, folder) for chunk in chunks]
        self._latents = torch.cat(latents) * float(vae.config.scaling_factor)
        self._scenes = [scene for chunk in chunks for scene in chunk.scenes]
        pictures = [chunk.clips()[:, :, 0].clone() for chunk in chunks if from_pictures]
        self._pictures = torch.cat(pictures) if from_pictures else None

    def batch(self, rng: random.Random, size: int) -> Batch:
        """A random batch, drawn with replacement."""
        picked = [rng.randrange(CLIPS) for _ in range(size)]
        scenes = [self._scenes[at] for at in picked]
        pictures = None if self._pictures is None else self._pictures[picked]
        return Batch(self._latents[picked], scenes, pictures)


class _Chunk:
    """The clips of one cache file, drawn from a fixed seed."""

    def __init__(self, at: int, from_pictures: bool) -> None:
        self._name = f"{'animated' if from_pictures else 'latents'}-{at:02d}"
        self._rng = random.Random(f"latents {at}")
        self._from_pictures = from_pictures
        self.scenes = [Scene.draw(self._rng) for _ in range(_CHUNK)]

    def clips(self) -> torch.Tensor:
        """``[B, 3, F, H, W]`` in [-1, 1]."""
        rng = random.Random()
        rng.setstate(self._rng.getstate())
        travel_px = ANY_TRAVEL_PX if self._from_pictures else TRAVEL_PX
        return render(self.scenes, rng, travel_px, **model.SIZE) * 2 - 1

    @torch.no_grad()
    def latents(self, vae: AutoencoderKLHunyuanVideo, folder: Path) -> torch.Tensor:
        """``[B, C, F, H, W]``, read from the file, which is written first if missing."""
        file = folder / f"{self._name}.safetensors"
        if not file.is_file():
            clips = self.clips().contiguous(memory_format=torch.channels_last_3d)
            latents = [self._encoded(vae, some) for some in clips.split(_AT_ONCE)]
            partial = file.with_suffix(".partial")
            save_file({"latents": torch.cat(latents).contiguous()}, partial)
            os.replace(partial, file)
        return load_file(file)["latents"]

    def _encoded(self, vae: AutoencoderKLHunyuanVideo, clips: torch.Tensor) -> torch.Tensor:
        latents: torch.Tensor = vae.encode(clips).latent_dist.mean
        if self._from_pictures:
            latents[:, :, :1] = vae.encode(clips[:, :, :1]).latent_dist.mean
        return latents
