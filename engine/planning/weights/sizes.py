"""Bytes of a transformer's weights, by the part that streaming treats alike."""

from __future__ import annotations

from dataclasses import dataclass

from longtake.configs.weights import StorageDtype
from longtake.engine.planning.plan_input import PlanInput

STORED_BYTES: dict[StorageDtype, float] = {
    "float8": 1 + 4 / 3072,
    "int8": 1 + 4 / 3072,
    "nf4": 0.5 + 4 / 64,
}
"""Bytes of a parameter of a block: float8 and int8 with a float32 scale a row, here one of 3072
values; nf4 with one for 64 values."""

FILE_BYTES = 2
"""Bytes of a parameter in a model's files: models are published in half precision."""


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
        whole = costs.transformer_bytes(element)
        in_blocks = costs.transformer_parameters - costs.num_experts * costs.non_block_parameters
        ratio = cls.ratio_of(plan_input)
        return cls(
            blocks=int(in_blocks * element * ratio),
            outside=whole - in_blocks * element,
            largest_block=int(costs.block_parameters * element * ratio),
        )

    @staticmethod
    def ratio_of(plan_input: PlanInput) -> float:
        """Stored bytes of a block's parameter over those of the compute dtype."""
        storage = plan_input.storage_dtype
        return 1.0 if storage is None else STORED_BYTES[storage] / plan_input.element_size

    @property
    def whole(self) -> int:
        """All weights."""
        return self.blocks + self.outside

    @property
    def slots(self) -> int:
        """The two slots that streamed blocks pass through."""
        return 2 * self.largest_block
