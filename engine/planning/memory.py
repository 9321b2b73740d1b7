"""What ranks hold at one time, by part."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from longtake.engine.dtypes import ELEMENT_BYTES
from longtake.parallel import ParallelDims

if TYPE_CHECKING:
    from longtake.engine.planning.prediction import Setting

_WITH_KERNELS = {"cuda": 1.5, "cpu": 1.25}
"""What convolutions take beside tensors; 1.47 was measured on an H100."""

_WITH_BLOCKS_KERNELS = {"cuda": 1.0, "cpu": 1.5}
"""The same for the blocks': on a CPU matrix products keep copies of their weights, and freed memory
is not all given back."""


_BLOCKS_AT_ONCE = 4
"""Whole blocks of split weights that FSDP2 holds at one time, measured over gloo: one computes, the
next is fetched, and what they were fetched into is let go later."""


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes that rank 0 holds, which alone encodes the prompt; not all parts at one time.

    Attributes:
        runtime: before anything is loaded: libraries, a GPU's context, NCCL's buffers.
        weights: of transformer and autoencoder.
        text: of the text encoders: on a GPU while they encode, on a CPU all the time.
        activations: of one pass through the transformer.
        buffers: of exchanges between ranks, and of split weights that are fetched.
        decode: of the tile that is decoded.
        text_stays: whether ``text`` is held beside everything else.
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
        """The most at one time: while text is encoded, while denoising, or while decoding."""
        if self.text_stays:
            return self.other_ranks + self.text
        return max(self.other_ranks, self.runtime + self.weights + self.text)

    @property
    def other_ranks(self) -> int:
        """The same of the other ranks, which have no text encoders."""
        return self.runtime + self.weights + max(self.activations + self.buffers, self.decode)

    def as_json(self) -> dict[str, int]:
        """By part, in bytes."""
        parts = asdict(self)
        del parts["text_stays"]
        return parts


def memory_of(
    setting: Setting, dims: ParallelDims, shard_weights: bool, num_tokens: int, head_share: float
) -> MemoryPlan:
    """What rank 0 holds, which alone encodes the prompt.

    Args:
        num_tokens: of the rank that owns most.
        head_share: see AttentionModel.
    """
    costs, hardware, element = setting.spec.costs, setting.hardware, setting.element_size
    tokens = num_tokens * setting.request.num_videos
    alone = costs.activation_bytes(tokens, element, ulysses=False, ring=False, head_share=1.0)
    split = costs.activation_bytes(
        tokens,
        element,
        ulysses=dims.ulysses_degree > 1,
        ring=dims.ring_degree > 1,
        head_share=head_share,
    )
    transformer, buffers = costs.transformer_parameters * element, max(0, split - alone)
    fetched = 0
    if shard_weights:
        transformer //= dims.world_size
        whole = _BLOCKS_AT_ONCE * costs.block_parameters + costs.parameters_outside
        fetched = whole * element
    text = costs.other_parameters["text_encoders"] * element
    autoencoder = costs.other_parameters["autoencoder"] * ELEMENT_BYTES[setting.vae_dtype]
    spans = costs.decode_spans(setting.grid.shape[2:], setting.request)
    largest = [max(span.num_cells for span in axis) for axis in spans]
    tile = costs.tile_bytes(largest, ELEMENT_BYTES[setting.vae_dtype])
    return MemoryPlan(
        runtime=int(hardware.runtime_bytes.value),
        weights=transformer + autoencoder,
        text=text,
        activations=int(alone * _WITH_BLOCKS_KERNELS[hardware.device]),
        buffers=int(buffers * _WITH_BLOCKS_KERNELS[hardware.device]) + fetched,
        decode=int(tile * _WITH_KERNELS[hardware.device]),
        text_stays=hardware.device == "cpu",
    )
