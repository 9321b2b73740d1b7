"""Trains the demo's image-to-video model, starting from the text-to-video weights."""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path

import torch
from diffusers import HunyuanVideoTransformer3DModel
from torch import nn
from transformers import CLIPTextModel, LlamaModel, LlavaForConditionalGeneration

from training.demo import model
from training.demo.denoiser import WORDLESS, noised
from training.demo.latents import Latents
from training.demo.loop import Schedule, train
from training.demo.phrases import motion_phrase
from training.demo.scenes import ANY_TRAVEL_PX, BACKGROUNDS, COLORS, SHAPES, Scene, render

VISION_STAGES = {"seen": Schedule(steps=4000, learning_rate=1e-3, decay=0.7)}
VIDEO_STAGES = {"animated": Schedule(steps=2400, learning_rate=5e-4, decay=0.7)}
BATCH = 16
PICTURES = 64


class VisionEncoder(nn.Module):
    """LLaVA's vision tower and projector, trained to map patches of a picture to the embeddings of
    the words for its color, shape and background.

    Args:
        llava: The LLaVA model, whose word embeddings are frozen.
    """

    def __init__(self, llava: LlavaForConditionalGeneration) -> None:
        super().__init__()
        self.tower = llava.model.vision_tower
        self.projector = llava.model.multi_modal_projector
        self._llava = [llava]  # in a list, so that its other weights are not registered here
        tokens = model.tokenizer(model.MAX_TEXT_TOKENS)
        self._number = {
            name: tokens.convert_tokens_to_ids(name) for name in (*COLORS, *SHAPES, *BACKGROUNDS)
        }

    def loss(self, step: int, rng: random.Random) -> torch.Tensor:
        """Mean squared error of used patches, mapped to color, shape and background in turn."""
        scenes = [Scene.draw(rng) for _ in range(PICTURES)]
        clips = render(scenes, rng, ANY_TRAVEL_PX, **{**model.SIZE, "frames": 1})
        llava, names = self._llava[0], ("color", "shape", "background")
        features = llava.model.get_image_features(clips[:, :, 0] * 2 - 1).pooler_output
        seen = torch.stack(list(features))[:, :: model.IMAGE_STRIDE]
        numbers = [[self._number[getattr(scene, name)] for name in names] for scene in scenes]
        words = llava.get_input_embeddings()(torch.tensor(numbers)).detach()
        turns = torch.arange(seen.shape[1]) % len(names)
        loss: torch.Tensor = (seen - words[:, turns]).pow(2).mean()
        return loss


class ImageToVideo(nn.Module):
    """The transformer, with token_replace, and its encoders, trained jointly.

    Args:
        start: Folder of a trained text-to-video model.
    """

    def __init__(self, start: Path) -> None:
        super().__init__()
        trained = HunyuanVideoTransformer3DModel.from_pretrained(
            start / "transformer", torch_dtype=torch.float32
        )
        self.transformer = model.transformer("token_replace")
        self.transformer.load_state_dict(trained.state_dict())
        self.llava = model.llava(
            LlamaModel.from_pretrained(start / "text_encoder", dtype=torch.float32)
        )
        self.clip = CLIPTextModel.from_pretrained(start / "text_encoder_2", dtype=torch.float32)
        self._tokens = model.tokenizer(model.MAX_TEXT_TOKENS + model.IMAGE_CROP_START, marks=True)
        self._clip_tokens = model.tokenizer(77)

    def forward(
        self,
        noisy: torch.Tensor,
        sigma: torch.Tensor,
        phrases: list[str],
        pictures: torch.Tensor,
    ) -> torch.Tensor:
        """Predict the velocity, ``[B, C, F, H, W]``.

        Args:
            noisy: Noisy latents, ``[B, C, F, H, W]``, with the pictures' latents as first frame.
            sigma: Noise levels, ``[B]``.
            phrases: Prompts, B in number.
            pictures: First frames, ``[B, 3, H, W]`` in [-1, 1].
        """
        states, mask = self._encode(phrases, pictures)
        words = self._clip_tokens(phrases, return_tensors="pt", padding=True, truncation=True)
        velocity: torch.Tensor = self.transformer(
            noisy,
            sigma * 1000,
            states,
            mask,
            self.clip(words.input_ids, words.attention_mask).pooler_output,
            guidance=torch.full_like(sigma, 1000.0),
            return_dict=False,
        )[0]
        return velocity.float()

    def _encode(
        self, phrases: list[str], pictures: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Hidden states ``[B, L, D]`` of the used image tokens and of the text, and their mask."""
        words = self._tokens(
            [model.IMAGE_TEMPLATE.format(each) for each in phrases],
            return_tensors="pt",
            padding=True,
        )
        image_at, patches = 1, model.IMAGE_TOKENS  # after <|begin|>

        def expanded(values: torch.Tensor) -> torch.Tensor:
            image = values[:, image_at, None].expand(-1, patches)
            return torch.cat([values[:, :image_at], image, values[:, image_at + 1 :]], dim=1)

        states = self.llava(
            input_ids=expanded(words.input_ids),
            attention_mask=expanded(words.attention_mask),
            pixel_values=pictures,
            output_hidden_states=True,
            logits_to_keep=1,
        ).hidden_states[-3]
        image = states[:, image_at : image_at + patches][:, :: model.IMAGE_STRIDE]
        text = states[:, model.IMAGE_CROP_START - 1 + patches :]
        ends = words.attention_mask.sum(1)[:, None] - model.IMAGE_CROP_START - 1  # the last <|end|>
        at = torch.arange(text.shape[1])[None]
        kept = (at < ends - model.NUM_MARKS) | (at == ends)
        order = (~kept).int().argsort(dim=1, stable=True)  # kept tokens first
        text = text.gather(1, order[..., None].expand(-1, -1, text.shape[-1]))
        mask = torch.arange(text.shape[1])[None] < kept.sum(1)[:, None]
        whole = mask.new_ones(len(mask), image.shape[1])
        return torch.cat([image, text], dim=1), torch.cat([whole, mask], dim=1)


def train_animator(start: Path, latents: Latents, folder: Path) -> ImageToVideo:
    """Train the image-to-video model, resuming from the last checkpoint.

    Args:
        start: Folder of a trained text-to-video model.
        latents: Encoded clips, with their first frames.
        folder: Folder of the checkpoints.
    """
    torch.manual_seed(0)
    student = ImageToVideo(start)
    vision = VisionEncoder(student.llava)
    for name, schedule in VISION_STAGES.items():
        train(vision, vision.loss, schedule, folder / f"{name}.pt")
    for name, schedule in VIDEO_STAGES.items():
        train(student, partial(_loss, student, latents), schedule, folder / f"{name}.pt")
    return student.eval().requires_grad_(False)


def _loss(student: ImageToVideo, latents: Latents, step: int, rng: random.Random) -> torch.Tensor:
    """Flow-matching loss, excluding the first frame. In float32, since few CPUs have bfloat16."""
    batch = latents.batch(rng, BATCH)
    assert batch.pictures is not None
    phrases = [
        "" if rng.random() < WORDLESS else motion_phrase(scene, rng) for scene in batch.scenes
    ]
    noisy, sigma, velocity = noised(batch.latents)
    noisy[:, :, :1] = batch.latents[:, :, :1]
    predicted = student(noisy, sigma, phrases, batch.pictures)
    loss: torch.Tensor = (predicted - velocity)[:, :, 1:].pow(2).mean()
    return loss
