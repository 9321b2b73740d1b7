"""Predicts the memory of a rank in training, by part.

Legend: D width, F width of the MLP, N query heads, M KV heads, H head size, V vocabulary, e bytes
per element, T tensor degree.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

from longtake.engine.planning.training.layouts import TrainingLayout
from longtake.engine.planning.training.training_input import (
    GRADIENT_BYTES,
    Recompute,
    TrainingInput,
)
from longtake.parallel import TokenShards

_GATHERED_BLOCKS = 2
"""Blocks of ZeRO-3 that are whole at a time: one computes, the next one is being gathered."""


@dataclass(frozen=True)
class TrainingMemory:
    """Peak bytes of the rank that needs most.

    Attributes:
        runtime: Libraries, CUDA context, NCCL buffers.
        weights: Weights, and gathered ones.
        gradients: Gradients.
        optimizer: Moments and the float32 copy of the weights.
        activations: What backward needs of every block.
        working: One block's gradients and recomputed tensors.
        logits: The output layer's logits, probabilities and gradients.
    """

    runtime: int
    weights: int
    gradients: int
    optimizer: int
    activations: int
    working: int
    logits: int

    @property
    def total(self) -> int:
        """Peak bytes. The logits are gone when the blocks' backward begins."""
        states = self.weights + self.gradients + self.optimizer
        return self.runtime + states + self.activations + max(self.working, self.logits)

    def as_json(self) -> dict[str, int]:
        """Bytes by part."""
        return asdict(self)


def saved_bytes(training: TrainingInput, layout: TrainingLayout, recompute: Recompute) -> float:
    """Bytes of one block that autograd keeps for each token of a rank's sequence shard.

    "none" is what transformers' LLaMA keeps, whose operations are not fused: 2 (4 + 2 e) D + 8 for
    the norms; (2 N + 2 M) H e + 4 N for q, k, v, output and log-sum-exp; 4 F e for the MLP.
    """
    decoder, config, element = training.decoder, training.config, training.element_size
    entry = element * decoder.width / layout.token_split
    output = element * decoder.query_width + 4 * config.num_attention_heads
    if recompute == "full":
        return entry
    if recompute == "selective":
        return entry + output / layout.tensor
    norms = 2 * (4 + 2 * element) * decoder.width + 8
    split = output + element * (decoder.query_width + 2 * decoder.kv_width + 4 * decoder.mlp_width)
    if layout.ulysses > 1:  # the exchanged output, which the next matrix keeps
        split += element * decoder.query_width
    return norms / layout.token_split + split / layout.tensor


def plan_memory(
    training: TrainingInput, layout: TrainingLayout, recompute: Recompute
) -> TrainingMemory:
    """The memory of the rank that needs most.

    Args:
        training: The decoder, the batch and the hardware.
        layout: The layout.
        recompute: What backward recomputes.
    """
    decoder, element = training.decoder, training.element_size
    parameters = decoder.stage_parameters(layout.pipeline) / layout.tensor
    block = decoder.block_parameters / layout.tensor
    vocabulary = decoder.stage_vocabulary(layout.pipeline) / layout.tensor
    gathered = _GATHERED_BLOCKS * block + vocabulary
    whole = element * min(gathered, parameters) if layout.zero == 3 else 0.0
    # the embedding and the output layer are one group of FSDP2, whose gradients are reduced at once
    unreduced = max(block, vocabulary) if layout.zero >= 2 else 0.0
    tokens = max(TokenShards.even(training.sequence, layout.dims).counts)
    saved = saved_bytes(training, layout, recompute) * decoder.stage_layers(layout.pipeline)
    working = element * (3 * decoder.mlp_width / layout.tensor + 2 * decoder.width)
    if recompute != "none":
        working += saved_bytes(training, layout, "none")
    logit_bytes = (8 + 2 * element) * training.config.vocab_size / layout.tensor
    last = TrainingMemory(
        runtime=int(training.hardware.runtime_bytes.value),
        weights=int(element * parameters * layout.share(3) + whole),
        gradients=int(GRADIENT_BYTES * (parameters * layout.share(2) + unreduced)),
        optimizer=int(training.optimizer_bytes * parameters * layout.share(1)),
        activations=int(tokens * saved),
        working=int(tokens * working),
        logits=int(tokens * logit_bytes),
    )
    # the first stage has no logits, and a micro-batch in flight for each stage behind it
    in_flight = min(layout.pipeline, training.batch // layout.data)
    first = replace(last, activations=int(tokens * in_flight * saved), logits=0)
    return max(last, first, key=lambda stage: stage.total)
