"""Trains the demo's autoencoder: on single frames first, then on clips."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from diffusers import AutoencoderKLHunyuanVideo
from torch.nn import functional as F

from training.demo import model
from training.demo.loop import Schedule, train
from training.demo.scenes import Scene, render


@dataclass(frozen=True)
class Stage:
    """One stage of the training.

    Attributes:
        name: Name of the stage and of its checkpoint.
        schedule: Steps and learning rate.
        videos: Number of videos per batch.
        frames: Frames per video.
        size_px: Side of the square crop, in pixels.
        decoder_alone: Whether to freeze the encoder and train in float32; bfloat16 costs 0.5 dB.
    """

    name: str
    schedule: Schedule
    videos: int
    frames: int = model.FRAMES
    size_px: int = model.HEIGHT_PX
    decoder_alone: bool = False


STAGES = (
    Stage("vae-frames", Schedule(2500, 5e-4, decay=0.2), videos=8, frames=1, size_px=32),
    Stage("vae-clips", Schedule(2400, 5e-4, decay=0.6), videos=1),
    Stage("vae-clips-again", Schedule(2400, 5e-4, decay=0.8), videos=1),
    Stage("vae-decoder", Schedule(1200, 3e-4, decay=0.9), videos=2, decoder_alone=True),
)
_KL_WEIGHT = 1e-4


def train_autoencoder(folder: Path) -> AutoencoderKLHunyuanVideo:
    """Train the autoencoder, resuming from the last checkpoint.

    Sets the scaling factor so that latents have standard deviation 1.

    Args:
        folder: Folder of the checkpoints.
    """
    torch.manual_seed(0)
    vae = model.autoencoder().to(memory_format=torch.channels_last_3d)
    for stage in STAGES:
        for part in (vae.encoder, vae.quant_conv):
            part.requires_grad_(not stage.decoder_alone)
        loss = partial(_loss, vae, stage)
        train(vae, loss, stage.schedule, folder / f"{stage.name}.pt")
    vae.eval().requires_grad_(False)
    sample = torch.cat([vae.encode(clip).latent_dist.mean for clip in held_out_clips(8)])
    vae.register_to_config(scaling_factor=round(1 / float(sample.std()), 4))
    return vae


def held_out_clips(count: int) -> list[torch.Tensor]:
    """Held-out clips, ``[1, 3, F, H, W]`` in [-1, 1] each."""
    rng = random.Random("unseen")
    return [render([Scene.draw(rng)], rng, **model.SIZE) * 2 - 1 for _ in range(count)]


@torch.no_grad()
def psnr_db(vae: AutoencoderKLHunyuanVideo, clips: list[torch.Tensor]) -> float:
    """Mean PSNR of the round trip in dB, with decoded values clamped and scaled to [0, 1]."""
    errors = [
        (vae.decode(vae.encode(clip).latent_dist.mean).sample.clamp(-1, 1) - clip).pow(2).mean() / 4
        for clip in clips
    ]
    return float(torch.stack([-10 * error.log10() for error in errors]).mean())


def _crops(stage: Stage, rng: random.Random) -> torch.Tensor:
    scenes = [Scene.draw(rng) for _ in range(stage.videos)]
    clips, size = render(scenes, rng, **{**model.SIZE, "frames": stage.frames}), stage.size_px
    crops = []
    for clip in clips:
        top, left = (rng.randrange(side - size + 1) for side in clip.shape[-2:])
        crops.append(clip[..., top : top + size, left : left + size])
    return torch.stack(crops).mul(2).sub(1).contiguous(memory_format=torch.channels_last_3d)


def _loss(
    vae: AutoencoderKLHunyuanVideo, stage: Stage, step: int, rng: random.Random
) -> torch.Tensor:
    """L2 and L1 reconstruction loss, and a small KL term that keeps latents near unit scale."""
    clips = _crops(stage, rng)
    with torch.autocast("cpu", torch.bfloat16, enabled=not stage.decoder_alone):
        posterior = vae.encode(clips).latent_dist
        decoded = vae.decode(posterior.sample()).sample.float()
    divergence = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean()
    loss: torch.Tensor = (
        F.mse_loss(decoded, clips) + 0.1 * F.l1_loss(decoded, clips) + _KL_WEIGHT * divergence
    )
    return loss
