"""One step of training: accumulate gradients, clip them, update the weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import loss_parallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from transformers import LlamaForCausalLM

from examples.long_context.data import Text, document_lengths, micro_batches
from examples.long_context.layout import Layout, Meshes
from longtake.parallel import TokenShards
from longtake.parallel.plugs.sequence import ShardedSequence
from longtake.parallel.plugs.transformers import causal_lm_inputs


@dataclass(frozen=True)
class StepReport:
    """What a step computed, the same on every rank.

    Attributes:
        loss: Mean cross entropy of the batch's labels, in nats, before the update.
        gradient_norm: Euclidean norm of the gradient of all weights, before clipping.
    """

    loss: float
    gradient_norm: float


@dataclass(frozen=True)
class Trainer:
    """Trains a model that ``model.parallelize`` has split.

    Args:
        model: The model, over this rank's share of the weights.
        optimizer: Its optimizer.
        text: The batches.
        layout: The layout.
        meshes: This rank's groups.
        accumulation: Forward and backward passes of a step, one after another.
        clip_norm: Largest norm of a gradient that is applied.
        packed: Whether a sequence holds several documents, which do not see each other. A pass then
            takes one sequence.
    """

    model: LlamaForCausalLM
    optimizer: torch.optim.Optimizer
    text: Text
    layout: Layout
    meshes: Meshes
    accumulation: int = 1
    clip_norm: float = 1.0
    packed: bool = False

    def step(self, step: int) -> StepReport:
        """Train on the batch of a step. Collective over all ranks."""
        batch = self.text.batch(step)
        num_labels = sum(len(row) - len(self._documents(row)) for row in batch)
        loss = torch.zeros((), device=self.meshes.weights.device_type)
        for rows in micro_batches(batch, self.accumulation, self.meshes.data):
            loss += self._accumulate(rows, num_labels)
        norm = clip_gradients(self.model, self.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        dist.all_reduce(loss, group=self.meshes.weights.get_group("shard"))
        return StepReport(loss.item(), norm.item())

    def _accumulate(self, rows: torch.Tensor, num_labels: int) -> torch.Tensor:
        """Add to the gradients; returns this rank's part of the batch's loss."""
        tokens = rows.to(self.meshes.weights.device_type)
        inputs = causal_lm_inputs(self._sequence(rows), tokens)
        inputs["num_items_in_batch"] = num_labels  # those of all ranks and passes
        with loss_parallel():  # of logits whose vocabulary is split over tensor-parallel ranks
            loss = self.model(**inputs).loss
            loss.backward()
        return _whole(loss.detach())

    def _sequence(self, rows: torch.Tensor) -> ShardedSequence:
        """How the ranks of a sequence share these tokens: in zigzag, for equal causal work."""
        documents = self._documents(rows[0])
        shards = TokenShards.zigzag(documents, self.layout.sequence)
        return ShardedSequence(self.meshes.sequence, shards, documents)

    def _documents(self, row: torch.Tensor) -> tuple[int, ...]:
        return document_lengths(row) if self.packed else (len(row),)


def clip_gradients(model: torch.nn.Module, max_norm: float) -> torch.Tensor:
    """Scale all gradients so that their norm over all ranks is at most ``max_norm``.

    Returns:
        The norm before, a scalar.
    """
    split, whole = [], []  # over the tensor-parallel ranks; FSDP2 splits all
    num_copies = 1
    for parameter in model.parameters():
        gradient = cast(DTensor, parameter.grad)
        if gradient.placements[-1].is_replicate():
            whole.append(gradient.to_local())
            num_copies = gradient.device_mesh.size(-1)
        else:
            split.append(gradient.to_local())
    square = get_total_norm(split) ** 2 + get_total_norm(whole) ** 2 / num_copies
    dist.all_reduce(square)
    norm = square.sqrt()
    clip_grads_with_norm_(model.parameters(), max_norm, norm)
    return norm


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor of which a DTensor is this rank's part."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
