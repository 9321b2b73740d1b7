"""What the denoisers are trained on: encoded clips of random scenes."""

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
    """Some clips.

    Attributes:
        latents: ``[B, C, F, H, W]``, float32, of deviation 1.
        scenes: what they show.
        pictures: their first frames, ``[B, 3, H, W]`` in [-1, 1], where they begin with them.
    """

    latents: torch.Tensor
    scenes: list[Scene]
    pictures: torch.Tensor | None


class Latents:
    """Clips that are encoded once, in files of 64 that a run goes on from."""

    def __init__(
        self, vae: AutoencoderKLHunyuanVideo, folder: Path, *, from_pictures: bool = False
    ) -> None:
        """Encode the clips, or read those that a run before has encoded.

        Args:
            folder: of the files.
            from_pictures: their first latent frame is that of the first frame alone, as it is when
                a picture is animated; and ways may be short, so that they begin anywhere.
        """
        chunks = [_Chunk(at, from_pictures) for at in range(CLIPS // _CHUNK)]
        latents = [chunk.latents(vae, folder) for chunk in chunks]
        self._latents = torch.cat(latents) * float(vae.config.scaling_factor)
        self._scenes = [scene for chunk in chunks for scene in chunk.scenes]
        pictures = [chunk.clips()[:, :, 0].clone() for chunk in chunks if from_pictures]
        self._pictures = torch.cat(pictures) if from_pictures else None

    def batch(self, rng: random.Random, size: int) -> Batch:
        """Some of them."""
        picked = [rng.randrange(CLIPS) for _ in range(size)]
        scenes = [self._scenes[at] for at in picked]
        pictures = None if self._pictures is None else self._pictures[picked]
        return Batch(self._latents[picked], scenes, pictures)


class _Chunk:
    """The clips of one file: the same whenever they are drawn."""

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
        """``[B, C, F, H, W]``, from the file or into it."""
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
