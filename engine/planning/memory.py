"""The memory that ranks need, by part, and whether a layout fits."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from longtake.configs.base import ELEMENT_BYTES
from longtake.engine.planning.plan_input import PlanInput
from longtake.parallel import ParallelDims

_CONVOLUTION_OVERHEAD = {"cuda": 1.5, "cpu": 1.25}
"""Peak memory of convolutions, workspaces included, over the bytes of their tensors. 1.47 was
measured on an H100."""

_BLOCK_OVERHEAD = {"cuda": 1.0, "cpu": 1.5}
"""The same for transformer blocks. On a CPU, matrix products keep packed copies of their weights,
and the allocator does not return all freed memory."""

_FSDP_BLOCKS_IN_MEMORY = 4
"""Whole blocks of sharded weights that FSDP2 holds at a time, measured over gloo: one computes, the
next is being gathered, and earlier buffers are freed late."""


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes in memory of rank 0, which alone encodes the prompt. Not all parts coexist.

    Attributes:
        runtime: Before anything is loaded: libraries, CUDA context, NCCL buffers.
        weights: Transformer and autoencoder.
        text: Text encoders; on a GPU only while they encode, on a CPU all the time.
        activations: One pass through the transformer.
        buffers: Exchanges between ranks, and gathered blocks of sharded weights.
        decode: The tile that is being decoded, or the pictures that are encoded.
        text_stays: Whether ``text`` stays in memory during all stages.
    """

    runtime: int
    weights: int
    text: int
    activations: int
    buffers: int
    decode: int
    text_stays: bool

    @property
    def total(self) -> int:
        """Peak bytes of rank 0: while encoding text, denoising or decoding."""
        if self.text_stays:
            return self.other_ranks + self.text
        return max(self.other_ranks, self.runtime + self.weights + self.text)

    @property
    def other_ranks(self) -> int:
        """Peak bytes of any other rank, which loads no text encoders."""
        return self.runtime + self.weights + max(self.activations + self.buffers, self.decode)

    def as_json(self) -> dict[str, int]:
        """Bytes by part."""
        parts = asdict(self)
        del parts["text_stays"]
        return parts


def plan_memory(plan_input: PlanInput, dims: ParallelDims, *, shard_weights: bool) -> MemoryPlan:
    """The memory of rank 0 in one layout.

    Args:
        plan_input: The model, the request and the hardware.
        dims: The layout.
        shard_weights: Whether the transformer's weights are sharded over all ranks.
    """
    hardware, request = plan_input.hardware, plan_input.request
    costs, element = plan_input.costs, plan_input.element_size
    tokens = max(plan_input.shards(dims).counts) * request.num_videos
    unsplit = costs.activation_bytes(tokens, element, ulysses=False, ring=False, head_share=1.0)
    split = costs.activation_bytes(
        tokens,
        element,
        ulysses=dims.ulysses_degree > 1,
        ring=dims.ring_degree > 1,
        head_share=plan_input.head_share(dims),
    )
    transformer, buffers = costs.transformer_bytes(element), max(0, split - unsplit)
    transformer = transformer * plan_input.resident_experts // costs.num_experts
    gathered = 0
    if shard_weights and dims.world_size > 1:
        transformer = costs.transformer_bytes(element, dims.world_size)
        gathered = _FSDP_BLOCKS_IN_MEMORY * costs.block_parameters + costs.non_block_parameters
    vae_element = ELEMENT_BYTES[plan_input.vae_dtype]
    spans = costs.decode_spans(plan_input.grid.shape[2:], request)
    largest_tile = [max(span.input_size for span in axis) for axis in spans]
    autoencoder = max(
        costs.tile_bytes(largest_tile, vae_element),
        costs.picture_bytes(plan_input.grid.shape[2:], vae_element),
    )
    return MemoryPlan(
        runtime=int(hardware.runtime_bytes.value),
        weights=transformer + costs.other_parameters["autoencoder"] * vae_element,
        text=costs.other_parameters["text_encoders"] * element,
        activations=int(unsplit * _BLOCK_OVERHEAD[hardware.device]),
        buffers=int(buffers * _BLOCK_OVERHEAD[hardware.device]) + gathered * element,
        decode=int(autoencoder * _CONVOLUTION_OVERHEAD[hardware.device]),
        text_stays=hardware.device == "cpu",
    )


def out_of_memory_reason(
    plan_input: PlanInput, dims: ParallelDims, *, shard_weights: bool
) -> str | None:
    """Why a layout does not fit in memory; None if it fits, or if the memory is unknown."""
    limit = plan_input.hardware.memory_bytes
    if limit is None:
        return None
    memory = plan_memory(plan_input, dims, shard_weights=shard_weights)
    available, needed, unit = limit.value, float(memory.total), "a rank"
    if plan_input.hardware.device == "cpu":  # the ranks of a host share its memory
        ranks = min(dims.world_size, plan_input.hardware.devices_per_node)
        needed, unit = needed + (ranks - 1) * memory.other_ranks, "a host"
    if needed <= available:
        return None
    return (
        f"needs {needed / 2**30:.1f} GiB {unit} and there are {available / 2**30:.1f}: "
        f"{(needed - available) / 2**30:.1f} too much"
    )
