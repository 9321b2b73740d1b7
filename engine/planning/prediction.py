"""How long a rendering takes and what it needs, in one layout: counted work over achieved rates."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from longtake.configs.base import Dtype
from longtake.configs.hardware import Hardware
from longtake.configs.request import ResolvedRequest
from longtake.engine.dtypes import ELEMENT_BYTES
from longtake.engine.planning.attention import AttentionModel
from longtake.engine.planning.memory import MemoryPlan, memory_of
from longtake.engine.planning.network import Network, ring_of
from longtake.errors import RequestError
from longtake.parallel import ParallelDims, TokenShards
from longtake.parallel.traffic import AttentionTraffic
from longtake.pipelines.costs import Work
from longtake.pipelines.spec import LatentGrid, ModelSpec, shards_of
from longtake.pipelines.tiles import Spans, TilePlan

_MANY_TILES = 10_000

_STORED_BYTES = 2
"""A parameter on disk: models are published in half precision."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is the same for all layouts of one plan.

    Args:
        spec: the model.
        hardware: what it runs on.
        request: what is rendered.
        dtype, vae_dtype: of weights and activations.
        text_tokens: of the encoded prompt; those of a negative one are as many.
        decode_ranks: that decode, at most; None is all.

    Raises:
        RequestError: the profile has no rate for a dtype.
    """

    spec: ModelSpec
    hardware: Hardware
    request: ResolvedRequest
    dtype: Dtype
    vae_dtype: Dtype
    text_tokens: int
    decode_ranks: int | None = None
    _decode_s: dict[int, float] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("dtype", "vae_dtype"):
            if getattr(self, name) not in self.hardware.flops_per_s:
                raise RequestError(
                    f"{name}={getattr(self, name)}: the profile of {self.hardware.description} has "
                    f"no rate for it: use {', '.join(self.hardware.flops_per_s)}"
                )

    @cached_property
    def grid(self) -> LatentGrid:
        """The latents."""
        return self.spec.grid(self.request)

    @property
    def element_size(self) -> int:
        """Bytes of one value of weights and activations."""
        return ELEMENT_BYTES[self.dtype]

    @property
    def num_branches(self) -> int:
        """Passes through the transformer that one step takes."""
        return 2 if self.request.uses_true_cfg else 1

    def decode_s(self, ranks: int) -> float:
        """Decoding on so many ranks: the one that has most to do of the tiles that are dealt."""
        if ranks not in self._decode_s:
            spans = self.spec.costs.decode_spans(self.grid.shape[2:], self.request)
            self._decode_s[ranks] = self._tiles_s(spans, ranks)
        return self._decode_s[ranks]

    def _tiles_s(self, spans: Spans, ranks: int) -> float:
        sizes = [Counter(span.num_cells for span in axis) for axis in spans]
        seconds = {
            cells: self.seconds(
                self.spec.costs.tile_decoding(cells, ELEMENT_BYTES[self.vae_dtype]),
                self.vae_dtype,
            )
            for cells in itertools.product(*sizes)
        }
        counts = {
            cells: math.prod(size[n] for size, n in zip(sizes, cells, strict=True))
            for cells in seconds
        }
        videos = self.request.num_videos
        if sum(counts.values()) * videos > _MANY_TILES:  # then all ranks have as much to do
            return videos * sum(seconds[cells] * counts[cells] for cells in seconds) / ranks
        plan, of_rank = TilePlan(spans, videos, ranks), [0.0] * ranks
        for tile, owner in zip(plan.tiles, plan.owners, strict=True):
            of_rank[owner] += seconds[tile.cells_shape]
        return max(of_rank)

    def seconds(self, work: Work, dtype: Dtype | None = None) -> float:
        """How long one device works. A GPU computes while the host starts what is next; on a CPU
        both are the same core."""
        hardware = self.hardware
        peak = hardware.flops_per_s[dtype or self.dtype].value
        through_memory = hardware.memory_bytes_per_s.value * hardware.memory_share.value
        computing = (
            work.linear_flops / (peak * hardware.linear_share.value)
            + work.attention_flops / (peak * hardware.attention_share.value)
            + work.convolution_flops / (peak * hardware.convolution_share.value)
            + work.memory_bytes / through_memory
        )
        starting = work.launches * hardware.launch_s.value
        return max(computing, starting) if hardware.device == "cuda" else computing + starting


@dataclass(frozen=True)
class StepTime:
    """One denoising step, in seconds of the slowest rank.

    Attributes:
        compute_s: of kernels.
        copies_s: of packing for exchanges.
        exposed_s: of communication that nothing hides.
        hidden_s: of communication behind which something is computed.
    """

    compute_s: float
    copies_s: float
    exposed_s: float
    hidden_s: float

    @property
    def seconds(self) -> float:
        """All that it takes."""
        return self.compute_s + self.copies_s + self.exposed_s


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One layout.

    Attributes:
        dims: the layout.
        shard_weights: whether the transformer's weights are split over all ranks.
        step: one denoising step.
        stages: seconds of load, text, denoise and decode.
        step_bytes: that each rank sends in one step, by rank.
        memory: of the rank that needs most.
    """

    dims: ParallelDims
    shard_weights: bool
    step: StepTime
    stages: Mapping[str, float]
    step_bytes: tuple[int, ...] = field(repr=False)
    memory: MemoryPlan

    @property
    def name(self) -> str:
        """``cfg x ring x ulysses``, and a mark where weights are split."""
        return layout_name(self.dims, shard_weights=self.shard_weights)

    @property
    def end_to_end_s(self) -> float:
        """All stages."""
        return sum(self.stages.values())

    @property
    def rendering_s(self) -> float:
        """All stages but loading, as a model that stays loaded takes."""
        return self.end_to_end_s - self.stages["load"]


def layout_name(dims: ParallelDims, *, shard_weights: bool) -> str:
    """``cfg x ring x ulysses``, and a mark where weights are split."""
    return f"{dims.name}{' +shard' if shard_weights else ''}"


def memory_in(setting: Setting, dims: ParallelDims, *, shard_weights: bool) -> MemoryPlan:
    """What rank 0 holds in one layout."""
    layout = _Layout(setting, dims, shard_weights and dims.world_size > 1)
    tokens = max(layout.shards.counts)
    return memory_of(setting, dims, layout.shard_weights, tokens, layout.head_share)


def predict(setting: Setting, dims: ParallelDims, *, shard_weights: bool = False) -> Prediction:
    """What one layout takes, for a layout that can run."""
    layout = _Layout(setting, dims, shard_weights and dims.world_size > 1)
    step = layout.step()
    stages = {
        "load": layout.load_s(),
        "text": layout.text_s(),
        "denoise": setting.request.num_inference_steps * step.seconds,
        "decode": layout.decode_s(),
    }
    return Prediction(
        dims=dims,
        shard_weights=layout.shard_weights,
        step=step,
        stages=stages,
        step_bytes=layout.step_bytes(),
        memory=memory_in(setting, dims, shard_weights=layout.shard_weights),
    )


@dataclass(frozen=True)
class _Layout:
    setting: Setting
    dims: ParallelDims
    shard_weights: bool

    @cached_property
    def shards(self) -> TokenShards:
        """Of video and text."""
        setting = self.setting
        return shards_of(setting.grid.num_tokens, setting.text_tokens, self.dims)[0]

    @property
    def batch(self) -> int:
        """Videos, which are rendered together."""
        return self.setting.request.num_videos

    @property
    def passes(self) -> int:
        """Through the transformer, one after the other, a step."""
        return self.setting.num_branches // self.dims.cfg_degree

    @cached_property
    def attention(self) -> AttentionModel:
        """One attention of one pass."""
        setting, heads = self.setting, self.setting.spec.costs.attention
        values = self.batch * heads.head_size
        traffic = AttentionTraffic(
            self.dims,
            self.shards,
            heads.num_heads,
            heads.num_kv_heads,
            values * setting.element_size,
        )
        return AttentionModel(setting.hardware, traffic, values, setting.dtype)

    @property
    def head_share(self) -> float:
        """See AttentionModel."""
        return self.attention.head_share

    def step(self) -> StepTime:
        """All passes of one step, and what travels beside them."""
        setting, heads = self.setting, self.setting.spec.costs.attention
        tokens = max(self.shards.counts) * self.batch
        work = setting.spec.costs.transformer_pass(
            tokens, setting.text_tokens * self.batch, setting.element_size
        )
        attention = self.attention.time()
        compute_s = setting.seconds(work) + heads.num_attentions * attention.compute_s
        times, beside = heads.num_attentions, self._beside_s()
        free_s = setting.hardware.overlap_share.value * compute_s - times * attention.hidden_s
        exposed_s, hidden_s = self._weights_s(max(0.0, free_s))
        return StepTime(
            compute_s=self.passes * compute_s,
            copies_s=self.passes * times * attention.copies_s,
            exposed_s=self.passes * (times * attention.exposed_s + exposed_s) + beside,
            hidden_s=self.passes * (times * attention.hidden_s + hidden_s),
        )

    def _weights_s(self, free_s: float) -> tuple[float, float]:
        """What is exposed and hidden of fetching split weights, the next block's behind this one's
        work, in one pass: an all-gather sends all but one's own part on, round all ranks.

        Args:
            free_s: of computing, while nothing else travels.
        """
        if not self.shard_weights:
            return 0.0, 0.0
        costs, num_blocks = (
            self.setting.spec.costs,
            self.setting.spec.costs.attention.num_attentions,
        )
        part = costs.transformer_parameters * self.setting.element_size / num_blocks
        ranks = self.dims.world_size
        block_s = Network(self.setting.hardware).seconds(ring_of(ranks, part * (ranks - 1) / ranks))
        hidden = min(block_s, free_s / num_blocks) * (num_blocks - 1)
        return block_s * num_blocks - hidden, hidden

    def _beside_s(self) -> float:
        """One flag a step, and the other branch's velocity."""
        ranks, network = self.dims.world_size, Network(self.setting.hardware)
        if ranks == 1:
            return 0.0
        flag = network.seconds(ring_of(ranks, 1))
        return flag + network.seconds(self._velocities())

    def _velocities(self) -> list[tuple[int, int, float]]:
        """Between the branches of true CFG, where they are computed side by side."""
        if self.dims.cfg_degree == 1:
            return []
        half, setting = self.dims.sequence_degree, self.setting
        video = TokenShards.even(setting.grid.num_tokens, self.dims).counts
        size = setting.spec.costs.token_values * setting.element_size * self.batch
        there: list[tuple[int, int, float]] = [
            (rank, rank + half, video[rank] * size) for rank in range(half)
        ]
        return there + [(target, source, sent) for source, target, sent in there]

    def step_bytes(self) -> tuple[int, ...]:
        """What each rank sends in one step, to the byte."""
        times = self.setting.spec.costs.attention.num_attentions
        sent = [0] * self.dims.world_size
        for rank in range(self.dims.world_size):
            of_one = self.attention.traffic.sent_by(rank % self.dims.sequence_degree)
            sent[rank] = self.passes * (times * of_one + self._weight_bytes)
            sent[rank] += self.dims.world_size - 1
        for rank, _, size in self._velocities():
            sent[rank] += int(size)
        return tuple(sent)

    @cached_property
    def _weight_bytes(self) -> int:
        """Of split weights, in one pass: FSDP2 pads rows that do not divide."""
        if not self.shard_weights:
            return 0
        ranks = self.dims.world_size
        values = sum(
            -(-shape[0] // ranks) * math.prod(shape[1:])
            for shape in self.setting.spec.costs.transformer_shapes
        )
        return values * self.setting.element_size * (ranks - 1)

    def load_s(self) -> float:
        """Every component is read once a host, by one rank."""
        hardware, costs = self.setting.hardware, self.setting.spec.costs
        size = _STORED_BYTES * (costs.transformer_parameters + sum(costs.other_parameters.values()))
        return hardware.startup_s.value + size / hardware.storage_bytes_per_s.value

    def text_s(self) -> float:
        """Rank 0 alone encodes; on a GPU the encoders come from host memory and go back."""
        setting, costs = self.setting, self.setting.spec.costs
        one = setting.seconds(
            costs.text_encoding(setting.request.max_sequence_length, setting.element_size)
        )
        if setting.hardware.host_bytes_per_s is not None:
            size = costs.other_parameters["text_encoders"] * setting.element_size
            one += 2 * size / setting.hardware.host_bytes_per_s.value
        return setting.num_branches * one

    def decode_s(self) -> float:
        """The rank that has most to do of the tiles, as they are dealt."""
        ranks = self.dims.world_size
        return self.setting.decode_s(min(ranks, self.setting.decode_ranks or ranks))
