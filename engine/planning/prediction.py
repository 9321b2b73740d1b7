"""Predicts the time and memory of one layout: counted work over achieved rates."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache

from longtake.configs.base import ELEMENT_BYTES
from longtake.engine.planning.attention import AttentionModel
from longtake.engine.planning.memory import MemoryPlan, is_tight, plan_memory
from longtake.engine.planning.network import Network, ring_transfers
from longtake.engine.planning.plan_input import PlanInput
from longtake.engine.planning.weights.places import Placement
from longtake.engine.planning.weights.sizes import FILE_BYTES, WeightSizes
from longtake.engine.planning.weights.streaming import Streaming
from longtake.parallel import ParallelDims, TokenShards
from longtake.parallel.attention.traffic import AttentionTraffic
from longtake.pipelines.codec.tiles import TilePlan

_MAX_ASSIGNED_TILES = 10_000
"""With more tiles, all ranks are assumed to decode equally long."""

_TIE_RATIO = 1.005
"""Predicted times that differ by less are a tie."""

_TIGHT_RATIO = 1.1
"""How much slower a plan may be that leaves memory, for one that does not to be passed over."""

_RESIDENT = Placement()


@dataclass(frozen=True)
class StepTime:
    """One denoising step, in seconds of the slowest rank.

    Attributes:
        compute_s: Kernels.
        copies_s: Packing and unpacking for exchanges.
        exposed_s: Communication that computation does not hide.
        hidden_s: Communication behind computation.
    """

    compute_s: float
    copies_s: float
    exposed_s: float
    hidden_s: float

    @property
    def seconds(self) -> float:
        """The duration of the step."""
        return self.compute_s + self.copies_s + self.exposed_s


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The predicted time, traffic and memory of one layout.

    Attributes:
        dims: The layout.
        placement: Where the weights live.
        step: One denoising step.
        stages: Seconds of ``load``, ``text``, ``denoise`` and ``decode``.
        step_bytes: Bytes that each rank sends per step, by rank.
        memory: Memory of the rank that needs most.
        tight: Whether that leaves little of the device's memory.
    """

    dims: ParallelDims
    placement: Placement
    step: StepTime
    stages: Mapping[str, float]
    step_bytes: tuple[int, ...] = field(repr=False)
    memory: MemoryPlan
    tight: bool

    @property
    def name(self) -> str:
        """``cfg x ring x ulysses``, and the place of weights that are not resident."""
        return layout_name(self.dims, self.placement)

    @property
    def end_to_end_s(self) -> float:
        """Seconds of all stages."""
        return sum(self.stages.values())

    @property
    def rendering_s(self) -> float:
        """Seconds of all stages but loading, as with a model that is already loaded."""
        return self.end_to_end_s - self.stages["load"]


def layout_name(dims: ParallelDims, placement: Placement) -> str:
    """``cfg x ring x ulysses``, and the place of weights that are not resident."""
    return f"{dims.name}{placement.mark}"


def predict(
    plan_input: PlanInput, dims: ParallelDims, placement: Placement = _RESIDENT
) -> Prediction:
    """Predict one layout, whether or not it fits in memory.

    Args:
        plan_input: The model, the request and the hardware.
        dims: The layout.
        placement: Where the weights live; one rank splits nothing.
    """
    if dims.world_size == 1 and placement.weights == "split":
        placement = replace(placement, weights="resident")
    memory = plan_memory(plan_input, dims, placement)
    layout = _Layout(plan_input, dims, placement, memory)
    step = layout.step()
    stages = {
        "load": layout.load_s(),
        "text": layout.text_s(),
        "denoise": plan_input.request.num_inference_steps * step.seconds,
        "decode": layout.decode_s(),
    }
    return Prediction(
        dims=dims,
        placement=placement,
        step=step,
        stages=stages,
        step_bytes=layout.step_bytes(),
        memory=memory,
        tight=is_tight(plan_input, memory),
    )


def best_first(predictions: Iterable[Prediction]) -> list[Prediction]:
    """Predictions by rising time, led by the best: of those that tie with the fastest, the
    preferred place, the fewest bytes sent, and the smallest ring. A plan that nearly fills a device
    leads only if no other comes near it."""
    ordered = sorted(predictions, key=lambda each: each.rendering_s)
    if not ordered:
        return []
    roomy = [each for each in ordered if not each.tight]
    near = roomy and roomy[0].rendering_s <= _TIGHT_RATIO * ordered[0].rendering_s
    allowed = roomy if near else ordered
    ties = [each for each in allowed if each.rendering_s <= _TIE_RATIO * allowed[0].rendering_s]
    best = min(
        ties,
        key=lambda each: (
            each.placement.preference,
            sum(each.step_bytes),
            each.dims.ring_degree,
        ),
    )
    return [best, *(each for each in ordered if each is not best)]


@dataclass(frozen=True)
class _Layout:
    plan_input: PlanInput
    dims: ParallelDims
    placement: Placement
    memory: MemoryPlan

    @cached_property
    def shards(self) -> TokenShards:
        """Ownership of the video and text tokens."""
        return self.plan_input.shards(self.dims)

    @property
    def batch(self) -> int:
        """Videos that are rendered together."""
        return self.plan_input.request.num_videos

    @property
    def passes(self) -> int:
        """Consecutive passes through the transformer per step."""
        return self.plan_input.num_passes // self.dims.cfg_degree

    @cached_property
    def attention(self) -> AttentionModel:
        """One attention of one pass."""
        plan_input, heads = self.plan_input, self.plan_input.costs.attention
        batch_head_size = self.batch * heads.head_size
        traffic = AttentionTraffic(
            self.dims,
            self.shards,
            heads.num_heads,
            heads.num_kv_heads,
            batch_head_size * plan_input.element_size,
        )
        return AttentionModel(plan_input.hardware, traffic, batch_head_size, plan_input.dtype)

    def step(self) -> StepTime:
        """All passes of one step, and the communication outside of attention."""
        plan_input = self.plan_input
        work = plan_input.costs.transformer_pass(
            max(self.shards.counts) * self.batch,
            plan_input.text_tokens * self.batch,
            plan_input.element_size,
        )
        work += plan_input.costs.weight_decoding(plan_input.element_size, plan_input.storage)
        count, attention = plan_input.costs.attention.num_attentions, self.attention.time()
        compute_s = plan_input.seconds(work) + count * attention.compute_s
        free_s = plan_input.hardware.overlap_share.value * compute_s - count * attention.hidden_s
        exposed_s, hidden_s = self._weights_s(max(0.0, free_s))
        return StepTime(
            compute_s=self.passes * compute_s,
            copies_s=self.passes * count * attention.copies_s,
            exposed_s=self.passes * (count * attention.exposed_s + exposed_s) + self._step_end_s(),
            hidden_s=self.passes * (count * attention.hidden_s + hidden_s),
        )

    def _weights_s(self, free_s: float) -> tuple[float, float]:
        """Exposed and hidden seconds in which blocks arrive, in one pass, which runs one expert.

        The next block is on its way while the current one computes.

        Args:
            free_s: Seconds of computation during which nothing else is sent.
        """
        costs = self.plan_input.costs
        num_blocks = costs.attention.num_attentions
        if self.splits:
            block_s = self._gather_s(num_blocks)
        elif self.placement.streams:
            sizes = WeightSizes.of(self.plan_input)
            block_s = self.streaming.seconds(sizes.blocks / costs.num_experts / num_blocks)
        else:
            return 0.0, 0.0
        hidden = min(block_s, free_s / num_blocks) * (num_blocks - 1)
        return block_s * num_blocks - hidden, hidden

    @property
    def splits(self) -> bool:
        """Whether each rank holds a share of the weights."""
        return self.placement.weights == "split"

    @property
    def streaming(self) -> Streaming:
        """How weights arrive from host memory or from files."""
        return Streaming(self.plan_input, self.dims, self.placement, self.memory.host)

    def _gather_s(self, num_blocks: int) -> float:
        """Seconds of all-gathering one block of split weights. An all-gather is a ring: each rank
        sends every shard but one to the next."""
        ranks = self.dims.world_size
        expert = self.plan_input.transformer_bytes() / self.plan_input.costs.num_experts
        transfers = ring_transfers(ranks, expert / num_blocks * (ranks - 1) / ranks)
        return Network(self.plan_input.hardware).seconds(transfers)

    def _step_end_s(self) -> float:
        """The stop flag of each step, and the exchange of velocities between cfg ranks."""
        ranks, network = self.dims.world_size, Network(self.plan_input.hardware)
        if ranks == 1:
            return 0.0
        return network.seconds(ring_transfers(ranks, 1)) + network.seconds(self._velocities())

    def _velocities(self) -> list[tuple[int, int, float]]:
        """Transfers between passes of a step that are computed side by side."""
        if self.dims.cfg_degree == 1:
            return []
        half, plan_input = self.dims.sequence_degree, self.plan_input
        video = TokenShards.even(plan_input.grid.num_tokens, self.dims).counts
        size = plan_input.costs.token_values * plan_input.element_size * self.batch
        outward: list[tuple[int, int, float]] = [
            (rank, rank + half, video[rank] * size) for rank in range(half)
        ]
        return outward + [(target, source, sent) for source, target, sent in outward]

    def step_bytes(self) -> tuple[int, ...]:
        """Bytes that each rank sends in one step, exactly."""
        count = self.plan_input.costs.attention.num_attentions
        sent = [0] * self.dims.world_size
        for rank in range(self.dims.world_size):
            one_attention = self.attention.traffic.bytes_sent_by(rank % self.dims.sequence_degree)
            sent[rank] = self.passes * (count * one_attention + self._weight_bytes)
            sent[rank] += self.dims.world_size - 1
        for rank, _, size in self._velocities():
            sent[rank] += int(size)
        return tuple(sent)

    @cached_property
    def _weight_bytes(self) -> int:
        """Bytes of split weights that a rank sends in one pass, which runs one expert."""
        if not self.splits:
            return 0
        costs, ranks = self.plan_input.costs, self.dims.world_size
        shard_bytes = self.plan_input.transformer_bytes(ranks)
        return shard_bytes // costs.num_experts * (ranks - 1)

    def load_s(self) -> float:
        """Loading: one rank per host reads once what is not read again from files."""
        hardware, costs = self.plan_input.hardware, self.plan_input.costs
        parameters = costs.transformer_parameters
        if self.placement.weights == "disk":
            parameters = costs.num_experts * costs.non_block_parameters
        others = costs.other_parameters["autoencoder"]
        if self.placement.text != "disk":
            others += costs.other_parameters["text_encoders"]
        size = self.plan_input.file_element_size * parameters + FILE_BYTES * others
        return hardware.startup_s.value + size / hardware.storage_bytes_per_s.value

    def text_s(self) -> float:
        """Encoding the prompt and the pictures. On a GPU the encoders come from host memory and
        return; streamed layers arrive while the ones before them compute."""
        plan_input, costs = self.plan_input, self.plan_input.costs
        work = costs.text_encoding(plan_input.request.max_sequence_length, plan_input.element_size)
        prompt_s = plan_input.seconds(work)
        size = costs.other_parameters["text_encoders"] * plan_input.element_size
        if self.placement.text != "resident":
            prompt_s = max(prompt_s, self.streaming.text_seconds(size, self.placement.text))
        elif plan_input.hardware.host_bytes_per_s is not None:
            prompt_s += 2 * size / plan_input.hardware.host_bytes_per_s.value
        return plan_input.num_passes * prompt_s + self._pictures_s()

    def _pictures_s(self) -> float:
        """Encoding the pictures to latents, on one rank."""
        plan_input, element_size = self.plan_input, ELEMENT_BYTES[self.plan_input.vae_dtype]
        work = plan_input.costs.picture_encoding(plan_input.grid.shape[2:], element_size)
        return plan_input.seconds(work, plan_input.vae_dtype)

    def decode_s(self) -> float:
        """Decoding on all ranks, or as many as the plan allows."""
        ranks = self.dims.world_size
        return _decode_s(self.plan_input, min(ranks, self.plan_input.decode_ranks or ranks))


@lru_cache(maxsize=64)
def _decode_s(plan_input: PlanInput, ranks: int) -> float:
    """Decoding on a number of ranks: the time of the rank with the most work."""
    costs, videos = plan_input.costs, plan_input.request.num_videos
    spans = costs.decode_spans(plan_input.grid.shape[2:], plan_input.request)
    sizes = [Counter(span.input_size for span in axis) for axis in spans]
    element_size = ELEMENT_BYTES[plan_input.vae_dtype]
    tile_s = {
        cells: plan_input.seconds(costs.tile_decoding(cells, element_size), plan_input.vae_dtype)
        for cells in itertools.product(*sizes)
    }
    counts = {
        cells: math.prod(size[n] for size, n in zip(sizes, cells, strict=True)) for cells in tile_s
    }
    if sum(counts.values()) * videos > _MAX_ASSIGNED_TILES:
        return videos * sum(tile_s[cells] * counts[cells] for cells in tile_s) / ranks
    plan, rank_s = TilePlan(spans, videos, ranks), [0.0] * ranks
    for tile, owner in zip(plan.tiles, plan.owners, strict=True):
        rank_s[owner] += tile_s[tile.input_shape]
    return max(rank_s)
