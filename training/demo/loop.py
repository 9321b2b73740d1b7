"""The training loop: learning rate schedule, weight averaging, checkpoints and loss log."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn


@dataclass(frozen=True)
class Schedule:
    """Learning rate schedule of one stage.

    Attributes:
        steps: Number of optimizer steps.
        learning_rate: Peak learning rate.
        warmup: Number of steps of linear warmup.
        decay: Fraction of the steps, at the end, in which the rate falls to 1% along a cosine.
        average: Decay of the moving average of the weights.
    """

    steps: int
    learning_rate: float
    warmup: int = 100
    decay: float = 0.5
    average: float = 0.998

    def rate(self, step: int) -> float:
        """The learning rate of a step."""
        falling = max(0.0, (step / self.steps - (1 - self.decay)) / self.decay)
        cosine = 0.5 * (1 + float(torch.cos(torch.tensor(falling * torch.pi))))
        return self.learning_rate * min(1.0, (step + 1) / self.warmup) * (0.01 + 0.99 * cosine)


def train(
    module: nn.Module,
    loss_of: Callable[[int, random.Random], torch.Tensor],
    schedule: Schedule,
    checkpoint: Path,
    *,
    save_every: int = 200,
    log_every: int = 50,
) -> None:
    """Train a module in place. On return it holds the moving average of its weights.

    An interrupted run resumes from its last checkpoint with identical results, since each step is
    seeded by its index.

    Args:
        module: The module to train.
        loss_of: Function of the step index and a seeded random generator, returning the loss.
        schedule: Steps and learning rate.
        checkpoint: Checkpoint file to resume from and to write. The log has the same name with the
            suffix ``.jsonl``.
        save_every: Number of steps between checkpoints.
        log_every: Number of steps between log lines.
    """
    parameters = [each for each in module.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    averages = [each.detach().clone() for each in parameters]
    first, seconds = 0, 0.0
    if checkpoint.is_file():
        saved = torch.load(checkpoint, weights_only=True)
        module.load_state_dict(saved["module"])
        optimizer.load_state_dict(saved["optimizer"])
        averages, first, seconds = saved["averages"], saved["step"], saved["seconds"]
    begun, losses = time.monotonic() - seconds, []
    for step in range(first, schedule.steps):
        torch.manual_seed(step)
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate(step)
        loss = loss_of(step, random.Random(step))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        decay = min(schedule.average, (step + 1) / (step + 10))
        torch._foreach_lerp_(averages, [each.detach() for each in parameters], 1 - decay)
        losses.append(float(loss.detach()))
        done, last = step + 1, step + 1 == schedule.steps
        if done % log_every == 0 or last:
            line = {"step": done, "loss": sum(losses) / len(losses)}
            _log(checkpoint, {**line, "seconds": round(time.monotonic() - begun, 1)})
            losses = []
        if done % save_every == 0 or last:
            state = {
                "module": module.state_dict(),
                "optimizer": optimizer.state_dict(),
                "averages": averages,
                "step": done,
                "seconds": time.monotonic() - begun,
            }
            partial = checkpoint.with_suffix(".partial")
            torch.save(state, partial)
            os.replace(partial, checkpoint)
    with torch.no_grad():
        torch._foreach_copy_(list[torch.Tensor](parameters), averages)


def _log(checkpoint: Path, line: dict[str, float]) -> None:
    with checkpoint.with_suffix(".jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
