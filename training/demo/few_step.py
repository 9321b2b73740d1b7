"""Distils a LoRA with which `demo` follows its own trajectories in fewer steps.

The teacher is `demo` at its default number of steps. Each step of the student spans several of the
teacher's. It learns their mean velocity from the teacher's own states first, then to stay close to
the teacher from noise to latents: small errors of early steps grow.

Legend: B videos, K steps of the student, C F H W latents.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils import parametrize

from training.demo import model
from training.demo.denoiser import TextToVideo
from training.demo.loop import Schedule, train
from training.demo.phrases import phrase
from training.demo.scenes import Scene

RANK = 16
TEACHER_STEPS = 24
GUIDANCE_SCALE = 4.0
TRAJECTORIES = 1536
_CHUNK = 32
"""Trajectories in one file."""

_LINEARS = ("to_", "add_", "ff.", "ff_context.", "proj_mlp", "proj_out")
"""Beginnings of the names, inside a block, of the linears of attention and feed-forward."""


@dataclass(frozen=True)
class Stage:
    """One stage of the training.

    Attributes:
        name: Name of the stage, and the end of that of its checkpoint.
        schedule: Steps and learning rate.
        videos: Samples of one optimizer step: steps of the student, or all steps of a video.
    """

    name: str
    schedule: Schedule
    videos: int


VELOCITY = Stage("velocity", Schedule(500, 1e-3, decay=0.6, average=0.99), videos=16)
PATH = Stage("path", Schedule(300, 5e-4, warmup=30, decay=0.8, average=0.98), videos=8)


@dataclass(frozen=True)
class Trajectories:
    """The teacher's trajectories, at the noise levels of the student's steps.

    Attributes:
        states: ``[B, K + 1, C, F, H, W]``, float32, from noise to latents.
        phrases: Prompts, B in number.
    """

    states: torch.Tensor
    phrases: list[str]

    def drawn(self, rng: random.Random, count: int) -> tuple[torch.Tensor, list[str]]:
        """The states and prompts of random trajectories, drawn with replacement."""
        which = [rng.randrange(len(self.phrases)) for _ in range(count)]
        return self.states[which], [self.phrases[each] for each in which]


class LowRank(nn.Module):
    """The update ``B A`` of a weight.

    Args:
        weight: The weight, ``[out, in]``.
    """

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        rows, columns = weight.shape
        self.down = nn.Parameter(torch.randn(RANK, columns) / columns**0.5)
        self.up = nn.Parameter(torch.zeros(rows, RANK))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """The updated weight."""
        return weight + self.up @ self.down


def train_few_step(start: Path, folder: Path, steps: int) -> dict[str, torch.Tensor]:
    """Distil the LoRA, resuming from the last checkpoint.

    Args:
        start: Folder of the text-to-video model.
        folder: Folder of the trajectories and checkpoints.
        steps: Steps of the student, a divisor of the teacher's.

    Returns:
        Float16 tensors by their names in diffusers' layout of a LoRA.

    Raises:
        ValueError: The number of steps is no divisor of the teacher's.
    """
    if TEACHER_STEPS % steps:
        raise ValueError(f"steps={steps} must be a divisor of the teacher's {TEACHER_STEPS}")
    torch.manual_seed(0)
    student = TextToVideo.load(start).eval().requires_grad_(False)
    trajectories = draw_trajectories(student, folder, steps)
    updates = add_low_rank(student.transformer)
    for stage, loss_of in ((VELOCITY, _velocity_loss), (PATH, _path_loss)):
        loss = partial(loss_of, student, trajectories)
        train(student, loss, stage.schedule, folder / f"{steps}-step-{stage.name}.pt")
    tensors = {}
    for name, update in updates.items():
        tensors[f"transformer.{name}.lora_A.weight"] = update.down
        tensors[f"transformer.{name}.lora_B.weight"] = update.up
    return {name: each.detach().half().contiguous() for name, each in tensors.items()}


def noise_levels(steps: int) -> torch.Tensor:
    """Shifted noise levels from 1 to 0, ``[steps + 1]``."""
    level = torch.linspace(1, 0, steps + 1)
    return model.FLOW_SHIFT * level / (1 + (model.FLOW_SHIFT - 1) * level)


def add_low_rank(transformer: nn.Module) -> Mapping[str, LowRank]:
    """Add a trainable low-rank update to the linears of attention and feed-forward, by name."""
    linears = {
        name: module
        for name, module in transformer.named_modules()
        if isinstance(module, nn.Linear)
        and "blocks." in name
        and name.split("blocks.")[1].split(".", 1)[1].removeprefix("attn.").startswith(_LINEARS)
    }
    updates = {name: LowRank(linear.weight) for name, linear in linears.items()}
    for name, update in updates.items():
        parametrize.register_parametrization(linears[name], "weight", update)
    return updates


def save_lora(
    file: Path, tensors: dict[str, torch.Tensor], steps: int, record: Mapping[str, object]
) -> None:
    """Write the LoRA with the settings it is made for.

    Args:
        file: The .safetensors file.
        tensors: Tensors by name.
        steps: Steps of the student.
        record: Figures of the training.
    """
    settings = {
        "num_inference_steps": steps,
        "guidance_scale": GUIDANCE_SCALE,
        "flow_shift": model.FLOW_SHIFT,
    }
    figures = {**record, "trajectories": TRAJECTORIES}
    metadata = {"longtake.few_step": json.dumps(settings), "training": json.dumps(figures)}
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, file, metadata)


def draw_trajectories(teacher: TextToVideo, folder: Path, steps: int) -> Trajectories:
    """Draw the teacher's trajectories, or read them from the folder."""
    parts, phrases = [], []
    for at in range(TRAJECTORIES // _CHUNK):
        rng = random.Random(f"trajectories {at}")
        phrases += (words := [phrase(Scene.draw(rng), rng) for _ in range(_CHUNK)])
        file = folder / f"trajectories-{at:02d}.safetensors"
        if not file.is_file():
            partial_file = file.with_suffix(".partial")
            save_file({"states": _trajectories(teacher, words, at)}, partial_file)
            os.replace(partial_file, file)
        parts.append(load_file(file)["states"][:, :: TEACHER_STEPS // steps])
    return Trajectories(torch.cat(parts), phrases)


@torch.no_grad()
def _trajectories(teacher: TextToVideo, phrases: list[str], seed: int) -> torch.Tensor:
    """All states of the teacher, ``[B, TEACHER_STEPS + 1, C, F, H, W]``."""
    generator = torch.Generator().manual_seed(seed)
    ratio = model.COMPRESSION
    frames = (model.FRAMES - 1) // ratio + 1
    rows, columns = model.HEIGHT_PX // ratio, model.WIDTH_PX // ratio
    shape = (len(phrases), model.LATENT_CHANNELS, frames, rows, columns)
    states = [torch.randn(shape, generator=generator)]
    levels = noise_levels(TEACHER_STEPS)
    for sigma, following in zip(levels, levels[1:], strict=False):
        with torch.autocast("cpu", torch.bfloat16):
            velocity = _velocity(teacher, states[-1], sigma.expand(len(phrases)), phrases)
        states.append(states[-1] + (following - sigma) * velocity)
    return torch.stack(states, dim=1)


def _velocity(
    denoiser: TextToVideo, noisy: torch.Tensor, sigma: torch.Tensor, phrases: list[str]
) -> torch.Tensor:
    velocity: torch.Tensor = denoiser(noisy, sigma, phrases, torch.full_like(sigma, GUIDANCE_SCALE))
    return velocity


def _velocity_loss(
    student: TextToVideo, trajectories: Trajectories, step: int, rng: random.Random
) -> torch.Tensor:
    """Squared error of the mean velocity of a step, for random trajectories and steps."""
    states, phrases = trajectories.drawn(rng, VELOCITY.videos)
    every, num_steps = torch.arange(len(states)), states.shape[1] - 1
    at = torch.tensor([rng.randrange(num_steps) for _ in phrases])
    levels = noise_levels(num_steps)
    noisy, following = states[every, at], states[every, at + 1]
    change = (levels[at + 1] - levels[at])[:, None, None, None, None]
    with torch.autocast("cpu", torch.bfloat16):
        predicted = _velocity(student, noisy, levels[at], phrases)
    loss: torch.Tensor = (predicted - (following - noisy) / change).pow(2).mean()
    return loss


def _path_loss(
    student: TextToVideo, trajectories: Trajectories, step: int, rng: random.Random
) -> torch.Tensor:
    """Mean squared error of the states after each step, from the noise of random trajectories."""
    states, phrases = trajectories.drawn(rng, PATH.videos)
    levels = noise_levels(states.shape[1] - 1)
    state, errors = states[:, 0], []
    for at, (sigma, following) in enumerate(zip(levels, levels[1:], strict=False)):
        with torch.autocast("cpu", torch.bfloat16):
            velocity = _velocity(student, state, sigma.expand(len(states)), phrases)
        state = state + (following - sigma) * velocity
        errors.append((state - states[:, at + 1]).pow(2).mean())
    return torch.stack(errors).mean()
