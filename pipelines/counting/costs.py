"""Cost model of a family that has no arithmetic of its own; imports torch only to count.

Legend: s a rank's tokens of the split sequence, N query heads, M KV heads, H head size.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

from longtake.configs.families import load_reference
from longtake.configs.request import ResolvedDecode
from longtake.errors import ModelError, one_line
from longtake.imports import garbage_collection_paused
from longtake.pipelines.codec.tiles import Spans
from longtake.pipelines.costs import AttentionHeads, ModelCosts, Work
from longtake.pipelines.counting.buffers import attention_buffers
from longtake.pipelines.counting.cache import CountsFile
from longtake.pipelines.counting.counts import (
    Counts,
    ModuleCounts,
    TextEncoderCounts,
    TileCounts,
    TransformerCounts,
    restore_spans,
    spans_key,
    store_spans,
    tile_key,
)
from longtake.pipelines.counting.encoders import NO_ENCODERS, stored_encoders
from longtake.pipelines.counting.polynomial import evaluate
from longtake.pipelines.loading.checkpoint import Checkpoint
from longtake.pipelines.spec import ModelSpec

if TYPE_CHECKING:
    from longtake.pipelines.counting.count import ModelCounter

logger = logging.getLogger(__name__)

CountT = TypeVar("CountT")
SpecT = TypeVar("SpecT", bound=ModelSpec)

_HALF_BYTES = 2
"""Bytes of an element in half precision."""

_LAUNCHES_A_LAYER = 2.5
"""Kernels of a layer of a text encoder, with its part of residual sums and activations."""


class CountedCosts(ModelCosts):
    """Costs counted on the model's own modules, without weights, on the meta device.

    Counting takes seconds, once for a model: counts are kept in a file.

    Args:
        checkpoint: The model's files.
        spec: The model's specification, whose costs are not read.
        skeleton: ``module:function`` that builds the model without weights: a function of
            ``(checkpoint, spec)`` that returns a :class:`~.skeleton.Skeleton`.
    """

    def __init__(self, checkpoint: Checkpoint, spec: ModelSpec, skeleton: str) -> None:
        self._checkpoint, self._spec, self._skeleton = checkpoint, spec, skeleton
        self._lock = threading.RLock()

    @property
    def attention(self) -> AttentionHeads:  # type: ignore[override]
        """Attentions over the split sequence that were seen in one pass, in any dtype."""
        counted = next(iter(self._counts.transformer), _HALF_BYTES)
        return self._transformer(counted).heads

    @property
    def token_values(self) -> int:  # type: ignore[override]
        """Latent channels times the patch volume."""
        return self._spec.autoencoder.latent_channels * math.prod(self._spec.patch)

    @property
    def transformer_shapes(self) -> Sequence[tuple[int, ...]]:
        """Shapes of all of the denoiser's parameters."""
        return self._modules.transformer

    @property
    def float32_shapes(self) -> Sequence[tuple[int, ...]]:
        """Shapes of those that are float32 in every dtype."""
        return self._modules.float32

    @property
    def linear_shapes(self) -> Sequence[tuple[int, ...]]:
        """Shapes of the weights of all blocks' linear layers."""
        return self._modules.linears

    @property
    def block_linear_shapes(self) -> Sequence[tuple[int, ...]]:
        """Those of the largest block."""
        return self._modules.block_linears

    @property
    def num_experts(self) -> int:  # type: ignore[override]
        """Transformers of which a pass runs one."""
        return self._modules.num_experts

    @property
    def block_parameters(self) -> int:
        """Parameters of the largest block."""
        return self._modules.block_parameters

    @property
    def non_block_parameters(self) -> int:
        """Parameters of one expert outside of its blocks."""
        return self._modules.non_block_parameters

    @property
    def other_parameters(self) -> Mapping[str, int]:
        """Parameters of the autoencoder and of the text encoders."""
        return {
            "autoencoder": self._modules.autoencoder,
            "text_encoders": self._text_encoders.parameters,
        }

    @property
    def text_streaming_parameters(self) -> int:
        """Parameters on the device at a time while prompts are encoded layer by layer."""
        return self._text_encoders.streaming_parameters

    def transformer_pass(self, num_tokens: int, num_text_tokens: int, element_size: int) -> Work:
        """Work of one pass, from the counted polynomials."""
        return self._transformer(element_size).work_of(num_tokens, num_text_tokens)

    def activation_bytes(
        self,
        num_tokens: int,
        element_size: int,
        *,
        ulysses: bool,
        ring: bool,
        head_share: float,
    ) -> int:
        """Peak memory of one pass: outside of attention across ranks, or inside, whichever is
        more."""
        counts = self._transformer(element_size)
        attention = evaluate(counts.attention_bytes, num_tokens)
        attention += attention_buffers(
            counts.heads,
            num_tokens,
            element_size,
            ulysses=ulysses,
            ring=ring,
            head_share=head_share,
        )
        return int(max(evaluate(counts.peak_bytes, num_tokens), attention))

    def text_encoding(self, max_tokens: int, element_size: int) -> Work:
        """Work of encoding one prompt: every token is multiplied with every matrix."""
        encoders = self._text_encoders
        return Work(
            linear_flops=2 * encoders.matrix_parameters * max_tokens,
            memory_bytes=element_size * encoders.matrix_parameters,
            launches=_LAUNCHES_A_LAYER * encoders.layers,
        )

    def decode_spans(self, latents_shape: Sequence[int], request: ResolvedDecode) -> Spans:
        """Tiles of the family's own tile coder."""
        key = spans_key(latents_shape, request)
        with self._lock:
            if key not in self._counts.spans:
                spans = self._counted(lambda counter: counter.spans(latents_shape, request))
                self._keep(self._counts.adding("spans", key, store_spans(spans)))
        return restore_spans(self._counts.spans[key])

    def tile_decoding(self, shape: Sequence[int], element_size: int) -> Work:
        """Work of decoding one tile, counted for its shape."""
        return Work(*self._tile(shape, element_size).work)

    def tile_bytes(self, shape: Sequence[int], element_size: int) -> int:
        """Peak memory of decoding one tile, counted for its shape."""
        return self._tile(shape, element_size).peak_bytes

    @cached_property
    def _file(self) -> CountsFile:
        return CountsFile(self._checkpoint, self._skeleton)

    @cached_property
    def _counts(self) -> Counts:
        return self._file.read()

    def _keep(self, counts: Counts) -> None:
        self._counts = counts
        self._file.write(counts)

    @cached_property
    def _counter(self) -> ModelCounter:
        """The model without weights, built when something is counted for the first time."""
        logger.info("counting the work of %s on the meta device", self._checkpoint.model)
        with garbage_collection_paused():
            build = load_reference(self._skeleton)
            from longtake.pipelines.counting.count import ModelCounter

        return ModelCounter(build(self._checkpoint, self._spec), self._spec)

    def _counted(self, count: Callable[[ModelCounter], CountT]) -> CountT:
        """A result of the counter, in which the family's own code runs.

        Raises:
            ModelError: It does not run on the meta device.
        """
        try:
            return count(self._counter)
        except ModelError:
            raise
        except Exception as error:  # the family's own code may raise anything
            raise ModelError(
                f"{self._checkpoint.model} cannot be planned: {self._skeleton} does not run on the "
                f"meta device: {type(error).__name__}: {one_line(error)}: correct it, or give the "
                "family's spec costs of its own"
            ) from error

    @property
    def _modules(self) -> ModuleCounts:
        with self._lock:
            modules = self._counts.modules
            if modules is None:
                modules = self._counted(lambda counter: counter.modules())
                self._keep(self._counts.model_copy(update={"modules": modules}))
        return modules

    def _transformer(self, element_size: int) -> TransformerCounts:
        with self._lock:
            if element_size not in self._counts.transformer:
                counts = self._counted(lambda counter: counter.transformer(element_size))
                self._keep(self._counts.adding("transformer", element_size, counts))
        return self._counts.transformer[element_size]

    def _tile(self, shape: Sequence[int], element_size: int) -> TileCounts:
        key = tile_key(shape, element_size)
        with self._lock:
            if key not in self._counts.tiles:
                counts = self._counted(lambda counter: counter.tile(shape, element_size))
                self._keep(self._counts.adding("tiles", key, counts))
        return self._counts.tiles[key]

    @cached_property
    def _text_encoders(self) -> TextEncoderCounts:
        """Sizes of the text encoders: as built, or as in the checkpoint's files."""
        if self._modules.text_encoders is not None:
            return self._modules.text_encoders
        return stored_encoders(self._checkpoint) or NO_ENCODERS


def with_costs(spec: SpecT, checkpoint: Checkpoint, skeleton: str) -> SpecT:
    """A specification with the costs that its family gives or, without them, counted ones.

    Args:
        spec: The specification.
        checkpoint: The model's files.
        skeleton: As in :class:`CountedCosts`; empty if the family has none.

    Raises:
        ModelError: The family gives neither costs nor a skeleton.
    """
    if spec.costs is not None:
        return spec
    if not skeleton:
        raise ModelError(
            f"{checkpoint.model} cannot be planned: the model family {spec.family} gives neither "
            "costs nor a skeleton to count them on"
        )
    return replace(spec, costs=CountedCosts(checkpoint, spec, skeleton))
