"""Counts one pass, one tile and the modules of a model without weights.

Legend: B videos, F H W latent frames, height and width, s a rank's tokens of the split sequence, L
tokens of the whole text, P values in one token.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from longtake.configs.request import Rendering, ResolvedDecode, ResolvedRequest
from longtake.parallel import ParallelDims
from longtake.parallel.mesh import AXES
from longtake.pipelines.codec.tiles import Spans
from longtake.pipelines.costs import AttentionHeads, Work, count
from longtake.pipelines.counting.attention import AttentionObserver
from longtake.pipelines.counting.counts import (
    WORK_FIELDS,
    ModuleCounts,
    TextEncoderCounts,
    TileCounts,
    TransformerCounts,
    store_work,
)
from longtake.pipelines.counting.polynomial import fit
from longtake.pipelines.counting.skeleton import Skeleton
from longtake.pipelines.counting.work import WorkCounter
from longtake.pipelines.layout import VideoLayout
from longtake.pipelines.operations import LiveBytes, observing
from longtake.pipelines.quantization.replacement import linears_in
from longtake.pipelines.runtime.stepper import Step
from longtake.pipelines.spec import LatentGrid, ModelSpec
from longtake.pipelines.text_encoders.layers import streaming_parameters

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

_DTYPES = {2: torch.bfloat16, 4: torch.float32}

_FEW, _MANY = (3, 30, 52), (21, 45, 80)
"""Tokens of the counted videos along time, height and width."""

_TEXT_LENGTHS = (64, 256, 512)

_FIRST_TIMESTEP = 1000.0


@dataclass(frozen=True)
class PassCounts:
    """What was counted in one pass of the transformer.

    Attributes:
        tokens: s and L.
        work: The work, excluding attention across ranks.
        heads: The attentions across ranks.
        peak_bytes: Peak memory outside of them, including the inputs.
        attention_bytes: Memory in use when one of them begins, including q, k and v: the most.
    """

    tokens: tuple[int, int]
    work: Work
    heads: AttentionHeads
    peak_bytes: int
    attention_bytes: int


class ModelCounter:
    """Counts on a model without weights.

    Args:
        skeleton: The model.
        spec: Its specification.
    """

    def __init__(self, skeleton: Skeleton, spec: ModelSpec) -> None:
        self._skeleton, self._spec = skeleton, spec

    def modules(self) -> ModuleCounts:
        """Sizes of the modules."""
        denoiser, float32 = self._skeleton.denoiser, self._skeleton.float32
        modules = [block for chain in denoiser.chains for block in chain]
        blocks, linears = [*map(_parameters, modules)], [*map(_linear_shapes, modules)]
        num_experts = max(1, len(denoiser.chains))
        named = [(name, tuple(each.shape)) for name, each in denoiser.named_parameters()]
        return ModuleCounts(
            transformer=tuple(shape for _, shape in named),
            float32=tuple(shape for name, shape in named if _matches(float32, name)),
            linears=tuple(itertools.chain.from_iterable(linears)),
            block_linears=max(linears, key=count, default=()),
            num_experts=num_experts,
            block_parameters=max(blocks, default=0),
            non_block_parameters=(_parameters(denoiser) - sum(blocks)) // num_experts,
            autoencoder=_parameters(self._skeleton.autoencoder),
            text_encoders=_text_encoders(self._skeleton.text_encoders),
        )

    def transformer(self, element_size: int) -> TransformerCounts:
        """One pass in a dtype of this many bytes per element, for any number of tokens.

        The first pass of a video may compute what later ones reuse; a later one is counted.
        """
        few, more, most = _TEXT_LENGTHS
        sizes = [(_FEW, few), (_MANY, few), (_FEW, more), (_MANY, more), (_FEW, most)]
        first, second = (self.count_pass(*sizes[0], element_size, earlier=n) for n in (0, 1))
        earlier = int(first.work != second.work)
        passes = [second]
        passes += [self.count_pass(*size, element_size, earlier=earlier) for size in sizes[1:]]
        points, heads = [each.tokens for each in passes], passes[0].heads
        in_tokens = points[:2]
        return TransformerCounts(
            work=tuple(
                fit(points, [int(getattr(each.work, name)) for each in passes])
                for name in WORK_FIELDS
            ),
            num_attentions=heads.num_attentions,
            num_heads=heads.num_heads,
            num_kv_heads=heads.num_kv_heads,
            head_size=heads.head_size,
            peak_bytes=fit(in_tokens, [each.peak_bytes for each in passes[:2]]),
            attention_bytes=fit(in_tokens, [each.attention_bytes for each in passes[:2]]),
        )

    def count_pass(
        self,
        tokens_shape: Sequence[int],
        num_text_tokens: int,
        element_size: int,
        *,
        earlier: int = 0,
    ) -> PassCounts:
        """One pass over one video on one rank.

        Args:
            tokens_shape: Tokens along time, height and width.
            num_text_tokens: L.
            element_size: Bytes per element.
            earlier: Passes of the same video before it.
        """
        denoiser, grid = self._skeleton.denoiser, self._grid(tokens_shape)
        _cast(denoiser, _DTYPES[element_size], self._skeleton.float32)
        memory, counter = LiveBytes(), WorkCounter(denoiser.parameters())
        attention = AttentionObserver(counter, memory)
        with torch.device("meta"):
            with AttentionObserver(WorkCounter(), memory), observing(memory):
                arguments = self._pass_arguments(grid, num_text_tokens)
                for _ in range(earlier):
                    denoiser(*arguments)
            memory.restart_peak()
            with attention, observing(memory, counter):
                denoiser(*arguments)
        return PassCounts(
            tokens=(attention.num_tokens or grid.num_tokens, num_text_tokens),
            work=counter.work,
            heads=attention.heads,
            peak_bytes=memory.peak,
            attention_bytes=attention.live_bytes,
        )

    def tile(self, shape: Sequence[int], element_size: int) -> TileCounts:
        """Decoding one tile of ``(f, h, w)`` latents."""
        autoencoder = self._skeleton.autoencoder
        _cast(autoencoder, _DTYPES[element_size])
        memory, counter = LiveBytes(), WorkCounter(autoencoder.parameters())
        channels = self._spec.autoencoder.latent_channels
        grid = LatentGrid((1, channels, *shape), self._spec.patch)  # type: ignore[arg-type]
        coder = self._skeleton.decoder(self._request(grid, 1))
        attention = AttentionObserver(counter, memory)
        with torch.device("meta"), attention, observing(memory, counter):
            coder.run(torch.empty(grid.shape))
        return TileCounts(work=store_work(counter.work), peak_bytes=memory.peak)

    def spans(self, latents_shape: Sequence[int], request: ResolvedDecode) -> Spans:
        """Tiles of latents of shape ``(F, H, W)``."""
        return self._skeleton.decoder(request).spans(latents_shape)

    def _pass_arguments(
        self, grid: LatentGrid, num_text_tokens: int
    ) -> tuple[torch.Tensor, Step, Any]:
        """The arguments of the denoiser's first pass on one rank."""
        skeleton = self._skeleton
        inputs = skeleton.denoiser.prepare(
            skeleton.streams(num_text_tokens),
            VideoLayout.of(grid, ParallelDims(), _mesh_of_one_rank()),
            self._request(grid, num_text_tokens),
            skeleton.pictures(grid),
        )
        tokens = torch.empty(1, grid.num_tokens, self._token_values)
        return tokens, Step(0, torch.empty(()), _FIRST_TIMESTEP), inputs

    @property
    def _token_values(self) -> int:
        return self._spec.autoencoder.latent_channels * torch.Size(self._spec.patch).numel()

    def _grid(self, tokens_shape: Sequence[int]) -> LatentGrid:
        frames, rows, columns = (
            size * step for size, step in zip(tokens_shape, self._spec.patch, strict=True)
        )
        channels = self._spec.autoencoder.latent_channels
        return LatentGrid((1, channels, frames, rows, columns), self._spec.patch)

    def _request(self, grid: LatentGrid, num_text_tokens: int) -> ResolvedRequest:
        """A request for a video of this size, with the model's defaults."""
        frames, height, width = self._spec.autoencoder.video_size(*grid.shape[2:])
        asked = Rendering(prompt="a video", num_frames=frames, height=height, width=width)
        fields = {
            **asked.model_dump(),
            "num_inference_steps": 1,
            "seed": 0,
            "fps": 24.0,
            "decode": "whole",
            "max_sequence_length": num_text_tokens,
            **self._spec.resolve_fields(asked),
        }
        return ResolvedRequest(**fields)


class _OneRank:
    """What is read of a mesh of one rank. It has no process groups: nothing can be sent."""

    device_type, mesh_dim_names = "meta", AXES

    def size(self, dim: int) -> int:
        """Number of ranks along an axis."""
        return 1

    def get_coordinate(self) -> list[int]:
        """This rank's place."""
        return [0] * len(AXES)


def _mesh_of_one_rank() -> DeviceMesh:
    """A mesh, so that attention across ranks is told from attention to keys that a rank holds."""
    return cast("DeviceMesh", _OneRank())


def _cast(module: nn.Module, dtype: torch.dtype, keep: re.Pattern[str] | None = None) -> None:
    """Convert parameters, as loading their weights does."""
    for name, parameter in module.named_parameters():
        kept = _matches(keep, name)
        parameter.data = parameter.data.to(torch.float32 if kept else dtype)


def _matches(pattern: re.Pattern[str] | None, name: str) -> bool:
    return pattern is not None and pattern.search(name) is not None


def _text_encoders(modules: Sequence[nn.Module] | None) -> TextEncoderCounts | None:
    if modules is None:
        return None
    leaves = [each for module in modules for each in module.modules() if not list(each.children())]
    embedded = sum(_parameters(each) for each in leaves if isinstance(each, nn.Embedding))
    parameters = sum(map(_parameters, modules))
    return TextEncoderCounts(
        parameters=parameters,
        matrix_parameters=parameters - embedded,
        layers=len(leaves),
        streaming_parameters=sum(map(streaming_parameters, modules)),
    )


def _linear_shapes(block: nn.Module) -> tuple[tuple[int, ...], ...]:
    """Shapes of the weights of a block's linear layers."""
    return tuple(tuple(linear.weight.shape) for _, _, linear in linears_in([block]))


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
