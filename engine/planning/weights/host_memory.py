"""The memory that a plan takes of a host, beside that of its devices, and what the host has."""

from __future__ import annotations

from dataclasses import dataclass

from longtake.configs.base import ELEMENT_BYTES
from longtake.configs.hardware import Hardware
from longtake.engine.planning.plan_input import PlanInput
from longtake.engine.planning.weights.places import Placement
from longtake.engine.planning.weights.sizes import WeightSizes
from longtake.parallel import ParallelDims

_USABLE_SHARE = 0.9
"""Share of a host's memory that weights may take: the system and the desktop need some."""

_RANK_BYTES = 2**30
"""What the libraries of one rank take of its host, roughly."""

_STAGING_BUFFERS = 2
"""Pinned blocks through which a rank reads its weights from files."""


@dataclass(frozen=True)
class HostMemory:
    """Bytes in the memory of rank 0's host, which alone holds text encoders.

    Attributes:
        weights: The one copy of streamed weights that its ranks share.
        text: Text encoders while they rest.
        ranks: Libraries, staging buffers and resting autoencoders of all of its ranks.
        pinned: Page-locked bytes, out of all of these.
    """

    weights: int
    text: int
    ranks: int
    pinned: int

    @property
    def total(self) -> int:
        """All bytes."""
        return self.weights + self.text + self.ranks

    def shortage(self, hardware: Hardware) -> str | None:
        """Why a host has too little memory; None if it has enough, or if that is unknown."""
        limit, pinned = hardware.host_memory_bytes, hardware.pinned_bytes
        if limit is not None and self.total > _USABLE_SHARE * limit.value:
            return (
                f"needs {self.total / 2**30:.1f} GiB of host memory and "
                f"{_USABLE_SHARE * limit.value / 2**30:.1f} of {limit.value / 2**30:.1f} can be "
                "used"
            )
        if pinned is not None and self.pinned > pinned.value:
            return (
                f"needs to pin {self.pinned / 2**30:.1f} GiB of host memory and "
                f"{pinned.value / 2**30:.1f} can be pinned"
            )
        return None

    def spare_bytes(self, hardware: Hardware) -> float:
        """Host memory that is left for cached files; 0 if the host's memory is unknown."""
        limit = hardware.memory_bytes if hardware.device == "cpu" else hardware.host_memory_bytes
        return 0.0 if limit is None else max(0.0, _USABLE_SHARE * limit.value - self.total)


def plan_host_memory(plan_input: PlanInput, dims: ParallelDims, placement: Placement) -> HostMemory:
    """The memory of rank 0's host in one layout.

    Args:
        plan_input: The model, the request and the hardware.
        dims: The layout.
        placement: Where the weights live.
    """
    hardware, costs, sizes = plan_input.hardware, plan_input.costs, WeightSizes.of(plan_input)
    ranks = min(dims.world_size, hardware.devices_per_node)
    weights = staging = 0
    if placement.weights == "streamed":
        weights = sizes.blocks
    elif placement.weights == "disk":
        staging = ranks * _STAGING_BUFFERS * _pinned_size(sizes.largest_block)
    autoencoder = costs.other_parameters["autoencoder"] * ELEMENT_BYTES[plan_input.vae_dtype]
    resting = 0 if placement.weights == "resident" else ranks * autoencoder
    if hardware.device == "cpu":  # all else is in the ranks' own memory
        return HostMemory(weights, 0, 0, 0)
    text = costs.other_parameters["text_encoders"] * plan_input.element_size
    if placement.text == "disk" or hardware.unified_memory:
        staging += costs.text_streaming_parameters * plan_input.element_size
        text = 0
    streamed_text = text if placement.text == "streamed" else 0
    return HostMemory(
        weights, text, ranks * _RANK_BYTES + staging + resting, weights + staging + streamed_text
    )


def _pinned_size(num_bytes: int) -> int:
    """Bytes that torch allocates for a pinned buffer: a power of two."""
    return 1 << max(0, num_bytes - 1).bit_length()
