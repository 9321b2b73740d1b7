"""Predicts the duration of one transformer block, forward and backward, without ZeRO's exchanges.

Legend: D width, F width of the MLP, N query heads, M KV heads, H head size, e bytes per element.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from longtake.engine.planning.training.attention import SequenceAttention
from longtake.engine.planning.training.communication import Collectives
from longtake.engine.planning.training.layouts import TrainingLayout
from longtake.engine.planning.training.pass_time import PassTime
from longtake.engine.planning.training.training_input import (
    GRADIENT_BYTES,
    Recompute,
    TrainingInput,
)

_FORWARD_LAUNCHES, _BACKWARD_LAUNCHES = 25, 50
"""Operations that the host launches for a block: 7 matrix products, attention, and what lies
between them; about twice as many backward."""


@dataclass(frozen=True)
class Block:
    """One block over the tokens of one sequence that a rank holds.

    Args:
        training: The decoder, the sequence and the hardware.
        layout: The layout.
    """

    training: TrainingInput
    layout: TrainingLayout

    @cached_property
    def attention(self) -> SequenceAttention:
        """The attention of the block."""
        return SequenceAttention(self.training, self.layout)

    @property
    def tokens(self) -> int:
        """Tokens of the rank that has most; a tensor group shares them."""
        return self.attention.tokens

    def forward(self) -> PassTime:
        """One forward pass."""
        return self._launched(self._projections() + self.attention.forward(), _FORWARD_LAUNCHES)

    def backward(self, recompute: Recompute) -> PassTime:
        """One backward pass, with what it computes again."""
        element, tokens, layout = self.training.element_size, self.tokens, self.layout
        decoder = self.training.decoder
        # two norms and two sums of gradients, of two operands and a result each; as forward's
        # rotations; the activation, of three operands and two results
        moved = 12 * decoder.width / layout.token_split
        moved += 2 * (decoder.query_width + decoder.kv_width) / layout.tensor
        moved += 5 * decoder.mlp_width / layout.tensor
        gradients = 2 * GRADIENT_BYTES * decoder.block_matrices / layout.tensor
        own = PassTime(
            matrices_s=self.training.matrices_s(2 * self._product_flops()),
            memory_s=self.training.memory_s(moved * tokens * element + gradients),
            exposed_s=4 * self._tensor_gather_s(),
        )
        if layout.tensor_sequence:  # both inputs, gathered again for the gradients of weights
            again_s = 2 * self._tensor_gather_s()
            own = own.behind(again_s, self.training.hardware.overlap_share.value)
        total = self._launched(own + self.attention.backward(), _BACKWARD_LAUNCHES)
        if recompute == "none":
            return total
        again = self.attention.forward() if recompute == "full" else self.attention.to_heads()
        again += self._projections(stop_early=True)
        return total + self._launched(again, _FORWARD_LAUNCHES)

    def _projections(self, *, stop_early: bool = False) -> PassTime:
        """A forward pass without attention.

        What lies between matrix products is taken as fused: each norm, addition, rotation and
        activation reads its operands once and writes its result once.

        Args:
            stop_early: Whether it ends before the MLP's last product, as recomputation does in
                torch.utils.checkpoint: backward needs that product's input, not its result.
        """
        element, tokens, layout = self.training.element_size, self.tokens, self.layout
        decoder = self.training.decoder
        # two norms, one or two additions; the rotations of q and k; the activation
        moved = (7 if stop_early else 10) * decoder.width / layout.token_split
        moved += 2 * (decoder.query_width + decoder.kv_width) / layout.tensor
        moved += 3 * decoder.mlp_width / layout.tensor
        flops, exchanges = self._product_flops(), 4
        if stop_early:
            flops -= 2 * tokens * decoder.width * decoder.mlp_width / layout.tensor
            exchanges = 3
        return PassTime(
            matrices_s=self.training.matrices_s(flops),
            memory_s=self.training.memory_s(moved * tokens * element),
            exposed_s=exchanges * self._tensor_gather_s(),
        )

    def _product_flops(self) -> float:
        return 2 * self.tokens * self.training.decoder.block_matrices / self.layout.tensor

    def _tensor_gather_s(self) -> float:
        """An all-gather or a reduce-scatter of the tokens: half of an all-reduce."""
        size = self.tokens * self.training.decoder.width * self.training.element_size
        return Collectives(self.training.hardware, self.layout).gather_over_tensor_s(size)

    def _launched(self, time: PassTime, launches: int) -> PassTime:
        """The same, no shorter than the host takes to launch it."""
        launch_s = launches * self.training.hardware.launch_s.value
        return time + PassTime(waiting_s=max(0.0, launch_s - time.seconds))
