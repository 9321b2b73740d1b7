"""Trains the demo's transformer and text encoders: flow matching, then guidance distillation."""

from __future__ import annotations

import copy
import random
from functools import partial
from pathlib import Path

import torch
from diffusers import HunyuanVideoTransformer3DModel
from torch import nn
from transformers import CLIPTextModel, LlamaModel

from training.demo import model
from training.demo.latents import Latents
from training.demo.loop import Schedule, train
from training.demo.phrases import phrase

FLOW_STAGES = {
    "flow": Schedule(steps=7000, learning_rate=1e-3, decay=0.6),
    "flow-again": Schedule(steps=2000, learning_rate=6e-4, decay=1.0),
}
GUIDANCE_STAGES = {"guidance": Schedule(steps=600, learning_rate=3e-4, decay=0.7, average=0.99)}
BATCH = 32
WORDLESS = 0.1
GUIDANCE_SCALES = (1.0, 5.0)

Noised = tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[str]]


class TextToVideo(nn.Module):
    """The transformer and its text encoders, trained jointly."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer = model.transformer()
        self.llama, self.clip = model.text_encoders()
        self._tokens = model.tokenizer(model.MAX_TEXT_TOKENS + model.CROP_START)

    @classmethod
    def load(cls, folder: Path) -> TextToVideo:
        """Read a saved model, in float32.

        Args:
            folder: Folder of the model.
        """
        saved = cls()
        saved.transformer = HunyuanVideoTransformer3DModel.from_pretrained(
            folder / "transformer", torch_dtype=torch.float32
        )
        saved.llama = LlamaModel.from_pretrained(folder / "text_encoder", dtype=torch.float32)
        saved.clip = CLIPTextModel.from_pretrained(folder / "text_encoder_2", dtype=torch.float32)
        return saved

    def forward(
        self,
        noisy: torch.Tensor,
        sigma: torch.Tensor,
        phrases: list[str],
        guidance: torch.Tensor,
    ) -> torch.Tensor:
        """Predict the velocity, ``[B, C, F, H, W]``.

        Args:
            noisy: Noisy latents, ``[B, C, F, H, W]``.
            sigma: Noise levels, ``[B]``.
            phrases: Prompts, B in number.
            guidance: Embedded guidance scales, ``[B]``.
        """
        words = self._tokens(
            [model.TEMPLATE.format(each) for each in phrases],
            return_tensors="pt",
            padding=True,
            truncation=True,
        )
        mask = words.attention_mask
        states = self.llama(words.input_ids, mask, output_hidden_states=True).hidden_states[-3]
        words_of_clip = self._tokens(phrases, return_tensors="pt", padding=True, truncation=True)
        pooled = self.clip(words_of_clip.input_ids, words_of_clip.attention_mask).pooler_output
        velocity: torch.Tensor = self.transformer(
            noisy,
            sigma * 1000,
            states[:, model.CROP_START :],
            mask[:, model.CROP_START :].bool(),
            pooled,
            guidance=guidance * 1000,
            return_dict=False,
        )[0]
        return velocity.float()


def train_denoiser(latents: Latents, folder: Path) -> TextToVideo:
    """Train the text-to-video model, resuming from the last checkpoint.

    Args:
        latents: Encoded clips.
        folder: Folder of the checkpoints.
    """
    torch.manual_seed(0)
    student = TextToVideo()
    for name, schedule in FLOW_STAGES.items():
        train(student, partial(_flow_loss, student, latents), schedule, folder / f"{name}.pt")
    teacher = copy.deepcopy(student).eval().requires_grad_(False)
    for name, schedule in GUIDANCE_STAGES.items():
        loss = partial(_guidance_loss, student, teacher, latents)
        train(student, loss, schedule, folder / f"{name}.pt")
    return student.eval().requires_grad_(False)


def _noisy(latents: Latents, rng: random.Random) -> Noised:
    """Noisy latents, their noise levels, target velocities and prompts."""
    batch = latents.batch(rng, BATCH)
    phrases = ["" if rng.random() < WORDLESS else phrase(scene, rng) for scene in batch.scenes]
    return *noised(batch.latents), phrases


def noised(clean: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Add noise of random level; returns noisy latents, noise levels and target velocities."""
    level = torch.randn(len(clean)).sigmoid()
    sigma = model.FLOW_SHIFT * level / (1 + (model.FLOW_SHIFT - 1) * level)
    noise, weight = torch.randn_like(clean), sigma[:, None, None, None, None]
    return (1 - weight) * clean + weight * noise, sigma, noise - clean


def _flow_loss(
    student: TextToVideo, latents: Latents, step: int, rng: random.Random
) -> torch.Tensor:
    noisy, sigma, velocity, phrases = _noisy(latents, rng)
    with torch.autocast("cpu", torch.bfloat16):
        predicted = student(noisy, sigma, phrases, torch.ones_like(sigma))
    loss: torch.Tensor = (predicted - velocity).pow(2).mean()
    return loss


def _guidance_loss(
    student: TextToVideo, teacher: TextToVideo, latents: Latents, step: int, rng: random.Random
) -> torch.Tensor:
    """Distill classifier-free guidance of random scale into one pass with embedded scale."""
    noisy, sigma, _, phrases = _noisy(latents, rng)
    low, high = GUIDANCE_SCALES
    scale = low + (high - low) * torch.rand(len(sigma))
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            unguided = torch.ones_like(scale)
            conditional = teacher(noisy, sigma, phrases, unguided)
            unconditional = teacher(noisy, sigma, [""] * len(phrases), unguided)
        difference = conditional - unconditional
        target = unconditional + scale[:, None, None, None, None] * difference
        predicted = student(noisy, sigma, phrases, scale)
    loss: torch.Tensor = (predicted - target).pow(2).mean()
    return loss
