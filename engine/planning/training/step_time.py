"""Predicts the duration of one optimizer step: micro-batches, ZeRO's exchanges, the optimizer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from longtake.engine.planning.training.block import Block
from longtake.engine.planning.training.communication import Collectives
from longtake.engine.planning.training.layouts import TrainingLayout
from longtake.engine.planning.training.pass_time import PassTime
from longtake.engine.planning.training.training_input import (
    GRADIENT_BYTES,
    Recompute,
    TrainingInput,
)

_OPTIMIZER_BYTES = 32
"""Traffic of the optimizer for each parameter that it updates: weight, two moments and the gradient
read, the first three written, and the gradient read once more for its norm."""


@dataclass(frozen=True)
class Step:
    """One optimizer step.

    Args:
        training: The decoder, the batch and the hardware.
        layout: The layout.
        recompute: What backward recomputes.
    """

    training: TrainingInput
    layout: TrainingLayout
    recompute: Recompute

    def time(self) -> PassTime:
        """The duration, by cause."""
        first = self._gathers(first=True)
        micro = first if self.layout.zero != 2 else self._gathers(first=False)
        rounds = self._micro_batches - 1
        bubble_s = (self.layout.pipeline - 1) * first.seconds
        whole = first + micro * rounds + PassTime(waiting_s=bubble_s)
        return whole + self._send_stages() + self._update()

    @property
    def _micro_batches(self) -> int:
        """Sequences that a replica takes, one after the other."""
        return self.training.batch // self.layout.data

    @cached_property
    def _collectives(self) -> Collectives:
        return Collectives(self.training.hardware, self.layout)

    @cached_property
    def _parameters(self) -> float:
        """Parameters of one rank, before ZeRO shards them."""
        layout = self.layout
        return self.training.decoder.stage_parameters(layout.pipeline) / layout.tensor

    def _gathers(self, *, first: bool) -> PassTime:
        """A micro-batch with ZeRO's exchanges behind its computation."""
        zero, overlap = self.layout.zero, self.training.hardware.overlap_share.value
        weights_s = reduced_s = 0.0
        if zero >= 2:
            size = self.training.element_size * self._parameters
            weights_s = self._collectives.gather_over_copies_s(size)
            reduced_s = self._collectives.gather_over_copies_s(GRADIENT_BYTES * self._parameters)
        forward = self._forward
        if zero == 3 or (zero == 2 and first):
            forward = forward.behind(weights_s, overlap)
        backward = self._backward.behind(reduced_s, overlap)
        if zero == 3:
            backward = backward.behind(weights_s, overlap)
        return forward + backward

    @cached_property
    def _block(self) -> Block:
        return Block(self.training, self.layout)

    @cached_property
    def _forward(self) -> PassTime:
        """One sequence through the slowest stage, which has the output layer."""
        layers = self.training.decoder.stage_layers(self.layout.pipeline)
        return self._block.forward() * layers + self._output_layer(1.0)

    @cached_property
    def _backward(self) -> PassTime:
        layers = self.training.decoder.stage_layers(self.layout.pipeline)
        return self._block.backward(self.recompute) * layers + self._output_layer(2.0)

    def _output_layer(self, work: float) -> PassTime:
        """The output layer and the loss.

        Args:
            work: Matrix products over those of forward.
        """
        training, layout = self.training, self.layout
        tokens, element = self._block.tokens, training.element_size
        logits = tokens * training.config.vocab_size / layout.tensor
        matrix = training.decoder.vocabulary_parameters / layout.tensor
        return PassTime(
            matrices_s=training.matrices_s(work * 2 * tokens * matrix),
            # forward: to float32, log-softmax; backward: its gradient, and back
            memory_s=training.memory_s(logits * (12 + element)),
            exposed_s=self._collectives.gather_over_tensor_s(
                tokens * training.decoder.width * element
            ),
        )

    def _send_stages(self) -> PassTime:
        """Activations to the next stage, and their gradients back."""
        if self.layout.pipeline == 1:
            return PassTime()
        size = self._block.tokens * self.training.decoder.width * self.training.element_size
        hop_s = self._collectives.next_stage_s(size / self.layout.token_split)
        return PassTime(exposed_s=2 * hop_s * (self._micro_batches + self.layout.pipeline - 1))

    def _update(self) -> PassTime:
        """The optimizer's step, and the exchanges that wait for the end of backward.

        ZeRO-0 and 1 reduce gradients once, after the last micro-batch, and ZeRO-1 then gathers the
        weights, as Megatron-LM does by default.
        """
        training, layout, parameters = self.training, self.layout, self._parameters
        owned, held = parameters * layout.share(1), parameters * layout.share(2)
        moved = (_OPTIMIZER_BYTES + training.element_size) * owned + GRADIENT_BYTES * held
        exposed_s = 0.0
        if layout.zero <= 1:
            exposed_s = self._collectives.gather_over_copies_s(GRADIENT_BYTES * parameters)
            last = GRADIENT_BYTES if layout.zero == 0 else training.element_size
            exposed_s += self._collectives.gather_over_copies_s(last * parameters)
        return PassTime(memory_s=training.memory_s(moved), exposed_s=exposed_s)
