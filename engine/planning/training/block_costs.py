"""Counts what one transformer block sends and holds under each parallelism, to the byte.

These are tables 2 and 3 of the USP paper (arXiv 2405.07719), from first principles. Weights and
activations have e bytes per element, gradients 4, and Adam's states with the float32 weights 12 in
half precision, 8 in float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from longtake.engine.planning.training.layouts import TrainingLayout, Zero
from longtake.engine.planning.training.memory import saved_bytes
from longtake.engine.planning.training.training_input import GRADIENT_BYTES, TrainingInput
from longtake.parallel import TokenShards
from longtake.parallel.attention.traffic import AttentionTraffic


@dataclass(frozen=True)
class Method:
    """A parallelism of N ranks and its cost in symbols.

    Volumes are in elements that one rank sends for one block, forward and backward, without
    recomputation. Legend: P parameters of the block, A activations that backward needs of all
    tokens, T tokens of the batch times width, g KV heads over query heads (with more Ulysses ranks
    than KV heads, Ulysses ranks over query heads), N ranks, U and R the Ulysses and ring degree.

    Attributes:
        name: Name of the method.
        axis: What its ranks split: the batch, the tokens (Ulysses, ring or both) or the matrices.
        weights_sent: Operations on weights and gradients.
        weights_volume: Elements that they send.
        activations_sent: Operations on activations.
        activations_volume: Elements that they send.
        held: Weights, gradients, optimizer states and activations of a rank. TP's ``a`` is the part
            of A that every rank holds, which is that of the norms, and 1/N of the rest.
        zero: ZeRO's stage.
        tensor_sequence: Whether tensor ranks split the tokens between their matrices.
    """

    name: str
    axis: Literal["data", "ulysses", "ring", "usp", "tensor"]
    weights_sent: str
    weights_volume: str
    activations_sent: str
    activations_volume: str
    held: tuple[str, str, str, str]
    zero: Zero = 0
    tensor_sequence: bool = True

    def layout(self, ranks: int, ring: int) -> TrainingLayout:
        """The layout of the method.

        Args:
            ranks: N.
            ring: R, for USP.
        """
        degrees = {"ring": ring, "ulysses": ranks // ring}
        if self.axis != "usp":
            degrees = {self.axis: ranks}
        return TrainingLayout(**degrees, zero=self.zero, tensor_sequence=self.tensor_sequence)


_ALL_REDUCE = ("all-reduce", "2 P (N-1)/N")
_SCATTER_GATHER = ("reduce-scatter, all-gather", "2 P (N-1)/N")
_ZERO_3 = ("2 all-gathers, reduce-scatter", "3 P (N-1)/N")
_NONE = ("none", "0")
_ULYSSES = ("4 all-to-alls", "4 (1+g) T/N (N-1)/N")
_RING = ("3 (N-1) K/V hops", "6 g T (N-1)/N")
_USP = ("4 all-to-alls, 3 (R-1) K/V hops", "4 (1+g) T/N (U-1)/U + 6 g T/N (R-1)")
_TP = ("4 all-reduces", "8 T (N-1)/N")
_TP_SP = ("6 all-gathers, 4 reduce-scatters", "10 T (N-1)/N")

_HELD = (
    ("P", "P", "P", "A/N"),
    ("P", "P", "P/N", "A/N"),
    ("P", "P/N", "P/N", "A/N"),
    ("P/N", "P/N", "P/N", "A/N"),
)
"""By ZeRO's stage."""

METHODS = (
    Method("DP", "data", *_ALL_REDUCE, *_NONE, _HELD[0]),
    Method("ZeRO-1", "data", *_SCATTER_GATHER, *_NONE, _HELD[1], 1),
    Method("ZeRO-2", "data", *_SCATTER_GATHER, *_NONE, _HELD[2], 2),
    Method("ZeRO-3", "data", *_ZERO_3, *_NONE, _HELD[3], 3),
    Method("SP-Ulysses", "ulysses", *_ALL_REDUCE, *_ULYSSES, _HELD[0]),
    Method("SP-Ring", "ring", *_ALL_REDUCE, *_RING, _HELD[0]),
    Method("USP", "usp", *_ALL_REDUCE, *_USP, _HELD[0]),
    Method("USP + ZeRO-1", "usp", *_SCATTER_GATHER, *_USP, _HELD[1], 1),
    Method("USP + ZeRO-2", "usp", *_SCATTER_GATHER, *_USP, _HELD[2], 2),
    Method("USP + ZeRO-3", "usp", *_ZERO_3, *_USP, _HELD[3], 3),
    Method("TP", "tensor", *_NONE, *_TP, ("P/N", "P/N", "P/N", "a A"), 0, False),
    Method("TP-sp", "tensor", *_NONE, *_TP_SP, _HELD[3]),
)
"""The rows of the tables."""


@dataclass(frozen=True)
class BlockCosts:
    """One block under one layout, in bytes of the rank that has most.

    Attributes:
        weights_sent: Sent for weights and gradients.
        activations_sent: Sent for activations, forward and backward.
        weights: Held of the weights.
        gradients: Held of their gradients.
        optimizer: Held of optimizer states.
        activations: Held for backward.
    """

    weights_sent: float
    activations_sent: float
    weights: float
    gradients: float
    optimizer: float
    activations: float


def block_costs(training: TrainingInput, layout: TrainingLayout) -> BlockCosts:
    """What one block sends and holds in one step without recomputation.

    Args:
        training: The decoder, whose vocabulary and pipeline do not matter, and the batch.
        layout: The layout.
    """
    parameters, element = training.decoder.block_parameters / layout.tensor, training.element_size
    sequences = training.batch // layout.data
    tokens = max(TokenShards.even(training.sequence, layout.dims).counts) * sequences
    return BlockCosts(
        weights_sent=_weights_sent(layout, parameters, element),
        activations_sent=sequences * attention_sent(training, layout)
        + _tensor_sent(layout, tokens * training.decoder.width * element),
        weights=element * parameters * layout.share(3),
        gradients=GRADIENT_BYTES * parameters * layout.share(2),
        optimizer=training.optimizer_bytes * parameters * layout.share(1),
        activations=tokens * saved_bytes(training, layout, "none"),
    )


def _weights_sent(layout: TrainingLayout, parameters: float, element: int) -> float:
    """Gradients are reduced in float32, weights gathered in their dtype."""
    sent = parameters * (layout.copies - 1) / layout.copies
    gathers = {0: GRADIENT_BYTES, 1: element, 2: element, 3: 2 * element}
    return sent * (GRADIENT_BYTES + gathers[layout.zero])


def _tensor_sent(layout: TrainingLayout, size: float) -> float:
    """A rank's part of ring all-gathers and reduce-scatters of a tensor group's tokens."""
    operations = 10 if layout.tensor_sequence else 8
    return operations * size * (layout.tensor - 1) / layout.tensor


def attention_sent(training: TrainingInput, layout: TrainingLayout) -> int:
    """Bytes that the busiest rank sends for one attention over one sequence, both ways."""
    config = training.config
    traffic = AttentionTraffic(
        layout.dims,
        TokenShards.even(training.sequence, layout.dims),
        config.num_attention_heads // layout.tensor,
        config.num_key_value_heads // layout.tensor,
        config.head_dim * training.element_size,
    )
    return max(
        traffic.bytes_sent_by(rank) + traffic.backward_bytes_sent_by(rank)
        for rank in range(layout.dims.sequence_degree)
    )
