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
    trainer = _Trainer(module, schedule)
    if checkpoint.is_file():
        trainer.load(checkpoint)
    losses = []
    while trainer.step < schedule.steps:
        losses.append(trainer.take_step(loss_of))
        last = trainer.step == schedule.steps
        if trainer.step % log_every == 0 or last:
            line = {"step": trainer.step, "loss": sum(losses) / len(losses)}
            _log(checkpoint, {**line, "seconds": round(trainer.elapsed_s, 1)})
            losses = []
        if trainer.step % save_every == 0 or last:
            trainer.save(checkpoint)
    trainer.use_averages()


class _Trainer:
    """A module in training, with its optimizer and the moving average of its weights.

    Attributes:
        step: Number of steps taken.
    """

    def __init__(self, module: nn.Module, schedule: Schedule) -> None:
        self._module, self._schedule = module, schedule
        self._parameters = [each for each in module.parameters() if each.requires_grad]
        self._optimizer = torch.optim.AdamW(
            self._parameters, betas=(0.9, 0.99), weight_decay=0.0, fused=True
        )
        self._averages = [each.detach().clone() for each in self._parameters]
        self._start = time.monotonic()
        self.step = 0

    @property
    def elapsed_s(self) -> float:
        """Time of training in seconds, that of interrupted runs included."""
        return time.monotonic() - self._start

    def take_step(self, loss_of: Callable[[int, random.Random], torch.Tensor]) -> float:
        """Take one optimizer step; return the loss before it."""
        step, optimizer = self.step, self._optimizer
        torch.manual_seed(step)
        for group in optimizer.param_groups:
            group["lr"] = self._schedule.rate(step)
        loss = loss_of(step, random.Random(step))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self._parameters, 1.0)
        optimizer.step()
        decay = min(self._schedule.average, (step + 1) / (step + 10))
        weights = [each.detach() for each in self._parameters]
        torch._foreach_lerp_(self._averages, weights, 1 - decay)
        self.step += 1
        return float(loss.detach())

    def use_averages(self) -> None:
        """Replace the weights by their moving average."""
        with torch.no_grad():
            torch._foreach_copy_(list[torch.Tensor](self._parameters), self._averages)

    def load(self, checkpoint: Path) -> None:
        """Continue from a checkpoint."""
        saved = torch.load(checkpoint, weights_only=True)
        self._module.load_state_dict(saved["module"])
        self._optimizer.load_state_dict(saved["optimizer"])
        self._averages, self.step = saved["averages"], saved["step"]
        self._start = time.monotonic() - saved["seconds"]

    def save(self, checkpoint: Path) -> None:
        """Write a checkpoint atomically."""
        state = {
            "module": self._module.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "averages": self._averages,
            "step": self.step,
            "seconds": self.elapsed_s,
        }
        partial = checkpoint.with_suffix(".partial")
        torch.save(state, partial)
        os.replace(partial, checkpoint)


def _log(checkpoint: Path, line: dict[str, float]) -> None:
    with checkpoint.with_suffix(".jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
