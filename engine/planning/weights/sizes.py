"""Bytes of a transformer's weights, by the part that streaming treats alike."""

from __future__ import annotations

from dataclasses import dataclass

from longtake.engine.planning.plan_input import PlanInput

FILE_BYTES = 2
"""Bytes of a parameter of text encoders and autoencoders in files: half precision is usual."""


@dataclass(frozen=True)
class WeightSizes:
    """The weights of all experts, in bytes as they are stored.

    Attributes:
        blocks: All blocks.
        outside: Everything outside of blocks.
        largest_block: The largest block.
    """

    blocks: int
    outside: int
    largest_block: int

    @classmethod
    def of(cls, plan_input: PlanInput) -> WeightSizes:
        """The weights of a plan's transformer; parameters that stay float32 count as outside."""
        costs, element = plan_input.costs, plan_input.element_size
        in_blocks = costs.transformer_parameters - costs.num_experts * costs.non_block_parameters
        outside = costs.transformer_bytes(element) - in_blocks * element
        return cls(
            blocks=plan_input.transformer_bytes() - outside,
            outside=outside,
            largest_block=costs.block_bytes(element, plan_input.storage),
        )

    @property
    def whole(self) -> int:
        """All weights."""
        return self.blocks + self.outside

    @property
    def slots(self) -> int:
        """The two slots that streamed blocks pass through."""
        return 2 * self.largest_block
