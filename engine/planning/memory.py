"""The memory that ranks and their hosts need, by part, and whether a layout fits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from longtake.configs.base import ELEMENT_BYTES
from longtake.configs.fields.weights import TextPlace, WeightPlace
from longtake.engine.planning.plan_input import PlanInput
from longtake.engine.planning.weights.host_memory import HostMemory, plan_host_memory
from longtake.engine.planning.weights.places import Placement, fastest_text_first
from longtake.engine.planning.weights.sizes import WeightSizes
from longtake.parallel import ParallelDims

_CONVOLUTION_OVERHEAD = {"cuda": 1.5, "cpu": 1.25}
"""Peak memory of convolutions, workspaces included, over the bytes of their tensors. 1.47 was
measured on an H100."""

_BLOCK_OVERHEAD = {"cuda": 1.0, "cpu": 1.5}
"""The same for transformer blocks. On a CPU, matrix products keep packed copies of their weights,
and the allocator does not return all freed memory."""

_ROOMY_SHARE = 0.95
"""Share of a GPU's memory up to which a plan fits for certain."""

_FSDP_BLOCKS_IN_MEMORY = 4
"""Whole blocks of split weights that FSDP2 holds at a time, measured over gloo: one computes, the
next is being gathered, and earlier buffers are freed late."""


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes in memory of rank 0, which alone encodes the prompt. Not all parts coexist.

    Attributes:
        runtime: Before anything is loaded: libraries, CUDA context, NCCL buffers.
        weights: This rank's share of the transformer during all stages: all of it, a shard, or what
            is outside of its blocks.
        slots: The two blocks of streamed weights that are on the device while it denoises.
        text: Text encoders while they encode: whole, or what is there of them at a time.
        autoencoder: The autoencoder's weights.
        activations: One pass through the transformer.
        buffers: Exchanges between ranks, gathered blocks of split weights, and a weight that is
            decoded from fewer bits.
        decode: The tile that is being decoded, or the pictures that are encoded.
        text_stays: Whether ``text`` stays in memory during all stages.
        autoencoder_stays: Whether ``autoencoder`` does, too.
        host: Memory of rank 0's host, beside its devices'.
    """

    runtime: int
    weights: int
    slots: int
    text: int
    autoencoder: int
    activations: int
    buffers: int
    decode: int
    text_stays: bool
    autoencoder_stays: bool
    host: HostMemory

    @property
    def text_stage(self) -> int:
        """Bytes of rank 0 while it encodes the prompt."""
        return self._lasting + self.text

    @property
    def denoising_stage(self) -> int:
        """Bytes of a rank while it denoises, without text encoders."""
        return self._lasting + self.slots + self.activations + self.buffers

    @property
    def decoding_stage(self) -> int:
        """Bytes of a rank while it decodes or encodes pictures, without text encoders."""
        working = 0 if self.autoencoder_stays else self.autoencoder
        return self._lasting + working + self.decode

    @property
    def _lasting(self) -> int:
        autoencoder = self.autoencoder if self.autoencoder_stays else 0
        return self.runtime + self.weights + autoencoder

    @property
    def total(self) -> int:
        """Peak bytes of rank 0: the largest stage."""
        if self.text_stays:
            return self.other_ranks + self.text
        return max(self.other_ranks, self.text_stage)

    @property
    def other_ranks(self) -> int:
        """Peak bytes of any other rank, which loads no text encoders."""
        return max(self.denoising_stage, self.decoding_stage)

    def as_json(self) -> dict[str, int]:
        """Bytes by part."""
        parts = asdict(self)
        for name in ("text_stays", "autoencoder_stays", "host"):
            del parts[name]
        return parts


def plan_memory(plan_input: PlanInput, dims: ParallelDims, placement: Placement) -> MemoryPlan:
    """The memory of rank 0 in one layout.

    Args:
        plan_input: The model, the request and the hardware.
        dims: The layout.
        placement: Where the weights live; one rank splits nothing.
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
    sizes = WeightSizes.of(plan_input)
    return MemoryPlan(
        runtime=int(hardware.runtime_bytes.value),
        weights=_lasting_weights(plan_input, dims, placement),
        slots=sizes.slots if placement.streams else 0,
        text=_text_bytes(plan_input, placement),
        autoencoder=costs.other_parameters["autoencoder"] * ELEMENT_BYTES[plan_input.vae_dtype],
        activations=int(unsplit * _BLOCK_OVERHEAD[hardware.device]),
        buffers=int(max(0, split - unsplit) * _BLOCK_OVERHEAD[hardware.device])
        + _gathered_bytes(plan_input, dims, placement)
        + costs.decoded_bytes(element, plan_input.storage),
        decode=int(_decode_bytes(plan_input) * _CONVOLUTION_OVERHEAD[hardware.device]),
        text_stays=_one_memory(plan_input) and placement.text != "disk",
        autoencoder_stays=hardware.device == "cpu" or placement.weights == "resident",
        host=plan_host_memory(plan_input, dims, placement),
    )


def _one_memory(plan_input: PlanInput) -> bool:
    """Whether ranks compute in the memory of their host."""
    return plan_input.hardware.device == "cpu" or plan_input.hardware.unified_memory


def _lasting_weights(plan_input: PlanInput, dims: ParallelDims, placement: Placement) -> int:
    """Bytes of the transformer that a rank holds during all stages."""
    sizes = WeightSizes.of(plan_input)
    if placement.streams:
        return sizes.outside
    if placement.weights == "split" and dims.world_size > 1:
        return plan_input.transformer_bytes(dims.world_size)
    return sizes.whole


def _gathered_bytes(plan_input: PlanInput, dims: ParallelDims, placement: Placement) -> int:
    """Bytes of whole blocks that FSDP2 holds at a time, and of what is outside of blocks."""
    if placement.weights != "split" or dims.world_size == 1:
        return 0
    costs, sizes = plan_input.costs, WeightSizes.of(plan_input)
    outside = costs.non_block_parameters * plan_input.element_size
    return _FSDP_BLOCKS_IN_MEMORY * sizes.largest_block + outside


def _text_bytes(plan_input: PlanInput, placement: Placement) -> int:
    """Bytes of the text encoders in the memory that they compute in."""
    costs = plan_input.costs
    whole = costs.other_parameters["text_encoders"]
    held = whole if placement.text == "resident" else costs.text_streaming_parameters
    if placement.text == "streamed" and _one_memory(plan_input):
        held += whole  # their copy is in the same memory
    return held * plan_input.element_size


def _decode_bytes(plan_input: PlanInput) -> int:
    """Tensors of the largest tile that is decoded, or of the pictures that are encoded."""
    costs, element = plan_input.costs, ELEMENT_BYTES[plan_input.vae_dtype]
    spans = costs.decode_spans(plan_input.grid.shape[2:], plan_input.request)
    largest_tile = [max(span.input_size for span in axis) for axis in spans]
    return max(
        costs.tile_bytes(largest_tile, element),
        costs.picture_bytes(plan_input.grid.shape[2:], element),
    )


def out_of_memory_reason(
    plan_input: PlanInput, dims: ParallelDims, placement: Placement
) -> str | None:
    """Why a layout does not fit in memory; None if it fits, or if the memory is unknown."""
    memory = plan_memory(plan_input, dims, placement)
    hardware = plan_input.hardware
    needed, unit = float(memory.total), "a rank"
    if _one_memory(plan_input):
        ranks = min(dims.world_size, hardware.devices_per_node)
        needed += (ranks - 1) * memory.other_ranks + memory.host.weights
        unit = "a host"
    limit = hardware.memory_bytes
    if limit is not None and needed > limit.value:
        return (
            f"needs {needed / 2**30:.1f} GiB {unit} and there are {limit.value / 2**30:.1f}: "
            f"{(needed - limit.value) / 2**30:.1f} too much"
        )
    return None if unit == "a host" else memory.host.shortage(hardware)


def is_tight(plan_input: PlanInput, memory: MemoryPlan) -> bool:
    """Whether so little memory of a GPU is left that its peak may not fit after all: peaks are
    predicted within 5 %, and the desktop and the allocator's gaps take some."""
    limit = plan_input.hardware.memory_bytes
    if limit is None or plan_input.hardware.device == "cpu":
        return False
    return memory.total > _ROOMY_SHARE * limit.value


def place_text(
    plan_input: PlanInput, dims: ParallelDims, weights: WeightPlace, text: Sequence[TextPlace]
) -> tuple[Placement, str | None]:
    """The fastest place of the text encoders with which a layout fits, not tightly if possible.

    Args:
        plan_input: The model, the request and the hardware.
        dims: The layout.
        weights: Place of the transformer.
        text: Allowed places of the text encoders.

    Returns:
        The placement, and why it does not fit: the last one's reason if none does.
    """
    fitting = None
    for place in fastest_text_first(text, one_memory=_one_memory(plan_input)):
        placement = Placement(weights, place)
        reason = out_of_memory_reason(plan_input, dims, placement)
        if reason is None:
            if not is_tight(plan_input, plan_memory(plan_input, dims, placement)):
                return placement, None
            fitting = fitting or placement
    return (placement, reason) if fitting is None else (fitting, None)
