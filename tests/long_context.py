"""Training of examples/long_context on ranks, and in one process with transformers alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaForCausalLM

from examples.long_context import checkpoint
from examples.long_context.data import Text, document_lengths
from examples.long_context.layout import Layout
from examples.long_context.model import make_config
from examples.long_context.options import Options
from examples.long_context.text import make_text
from examples.long_context.train import make_trainer
from longtake.parallel import count_traffic


def make_options(folder: Path, **changes: Any) -> Options:
    """Options of a tiny model: a prime number of tokens, and heads that few ranks divide."""
    text = folder / "text.txt"
    if not text.exists():
        text.write_bytes(make_text(4000).replace(b".\n", b".\n\n"))  # a line is a document
    sizes = dict(num_tokens=37, batch_size=6, layers=2, width=48, heads=6, kv_heads=2)
    if "layout" in changes:
        changes["layout"] = Layout.parse(changes["layout"])
    return Options(text, **{**sizes, **changes})


@dataclass(frozen=True)
class Course:
    """What a training run computed, step by step.

    Attributes:
        losses: ``[steps]``.
        norms: ``[steps]``, of the gradients before clipping.
        gradients: ``[steps, weights]``, after clipping; in one process.
        gradient_errors: ``[steps]``: largest differences from the expected gradients, on a rank.
        bytes_sent: By a rank, for attention.
        weights_held: By a rank, between steps.
    """

    losses: torch.Tensor
    norms: torch.Tensor
    gradients: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    gradient_errors: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    bytes_sent: int = 0
    weights_held: int = 0


def train_alone(options: Options, steps: int) -> Course:
    """Train in one process with transformers' own attention, loss and masks."""
    torch.manual_seed(options.seed)
    model = LlamaForCausalLM(make_config(*options.sizes))
    optimizer = torch.optim.AdamW(model.parameters(), options.learning_rate)
    text = Text.from_file(options.text, options.num_tokens, options.batch_size, options.seed)
    losses, norms, gradients = [], [], []
    for step in range(steps):
        loss = _loss_alone(model, text.batch(step), options.packed)
        optimizer.zero_grad()
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), options.clip_norm))
        gradients.append(torch.cat([_gradient(each).flatten() for each in model.parameters()]))
        optimizer.step()
        losses.append(loss.detach())
    return Course(torch.stack(losses), torch.stack(norms), torch.stack(gradients))


def _loss_alone(model: LlamaForCausalLM, batch: torch.Tensor, packed: bool) -> torch.Tensor:
    """The mean loss of a batch. transformers finds packed documents by their positions."""
    loss, num_labels = torch.zeros(()), 0
    for row in batch:
        lengths = document_lengths(row) if packed else (len(row),)
        positions = torch.cat([torch.arange(length) for length in lengths])
        logits = model(input_ids=row[None], position_ids=positions[None]).logits[0]
        predicted = positions[1:] > 0
        losses = F.cross_entropy(logits[:-1], row[1:], reduction="none")
        loss, num_labels = loss + losses[predicted].sum(), num_labels + int(predicted.sum())
    return loss / num_labels


def train_on_ranks(
    options: Options,
    steps: Sequence[int],
    expected: torch.Tensor | None = None,
    resumed: Path | None = None,
    saved: Path | None = None,
) -> Course:
    """On one rank: train with the example's code.

    Args:
        options: The run.
        steps: The steps to train.
        expected: ``[len(steps), weights]``: the gradients after clipping.
        resumed: Checkpoint to start from.
        saved: Folder to write a checkpoint to, after the last step.
    """
    trainer = make_trainer(options, "cpu")
    if resumed is not None:
        checkpoint.load(resumed, trainer.model, trainer.optimizer)
    errors: list[float] = []
    if expected is not None:
        rows = iter(expected)
        trainer.optimizer.register_step_pre_hook(
            lambda *_: errors.append(_gradient_error(trainer.model, next(rows)))
        )
    with count_traffic() as traffic:
        reports = [trainer.step(step) for step in steps]
    if saved is not None:
        checkpoint.save(saved, steps[-1] + 1, trainer.model, trainer.optimizer, options.run)
    return Course(
        torch.tensor([report.loss for report in reports]),
        torch.tensor([report.gradient_norm for report in reports]),
        gradient_errors=torch.tensor(errors),
        bytes_sent=traffic.bytes_sent,
        weights_held=sum(_local(each).numel() for each in trainer.model.parameters()),
    )


class CollectiveCounter(TorchDispatchMode):
    """Counts collectives by name."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count a collective, and execute it."""
        if func.namespace in ("c10d", "_c10d_functional"):
            self.calls[func._opname] += 1
        return func(*args, **(kwargs or {}))


def count_collectives(options: Options) -> Counter[str]:
    """On one rank: the collectives of a step, by name."""
    trainer = make_trainer(options, "cpu")
    counter = CollectiveCounter()
    with counter:
        trainer.step(0)
    return counter.calls


def _gradient_error(model: torch.nn.Module, expected: torch.Tensor) -> float:
    """The largest difference between the gradients that this rank holds and the expected ones."""
    parameters = list(model.parameters())
    wholes = expected.split([each.numel() for each in parameters])
    differences = [
        (held.to_local() - _part(whole.view(held.shape), held)).flatten()
        for whole, held in zip(wholes, map(_gradient, parameters), strict=True)
    ]
    return torch.cat(differences).abs().max().item()


def _part(whole: torch.Tensor, held: DTensor) -> torch.Tensor:
    """The part of a whole tensor that a DTensor holds on this rank: tensor parallelism splits
    first, ZeRO splits the rest."""
    for axis in reversed(range(held.device_mesh.ndim)):
        placement: Any = held.placements[axis]
        if not placement.is_replicate():
            pieces = whole.chunk(held.device_mesh.size(axis), placement.dim)
            rank = held.device_mesh.get_local_rank(axis)
            empty = whole.narrow(placement.dim, 0, 0)
            whole = pieces[rank] if rank < len(pieces) else empty
    return whole


def _local(tensor: torch.Tensor) -> torch.Tensor:
    assert isinstance(tensor, DTensor)
    return tensor.to_local()


def _gradient(parameter: torch.Tensor) -> Any:
    assert parameter.grad is not None
    return parameter.grad
