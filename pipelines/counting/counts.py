"""What was counted of a model, as it is stored; without torch.

Legend: s a rank's tokens of the split sequence, L tokens of the whole text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Annotated, Any

from pydantic import Field

from longtake.configs.base import StrictModel
from longtake.configs.request import ResolvedDecode
from longtake.pipelines.codec.tiles import Span, Spans
from longtake.pipelines.costs import AttentionHeads, Work
from longtake.pipelines.counting.polynomial import NUM_TERMS, evaluate

Number = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]
Coefficients = Annotated[tuple[Number, ...], Field(min_length=1, max_length=NUM_TERMS)]
Shapes = tuple[tuple[Count, ...], ...]
StoredSpan = tuple[Count, Count, int | None, int | None, Count, Count, Count]
"""Start and stop of the input, those of the used output, its size, blended and kept values."""


class TransformerCounts(StrictModel):
    """One pass of the transformer in one dtype: polynomials in s and L.

    Attributes:
        work: One polynomial for each field of :class:`Work`, in its order.
        num_attentions: Attentions across ranks.
        num_heads: Their query heads.
        num_kv_heads: Their KV heads.
        head_size: Values per head.
        peak_bytes: Peak memory outside of attention across ranks.
        attention_bytes: Memory in use when attention across ranks begins, including q, k and v.
    """

    work: Annotated[tuple[Coefficients, ...], Field(min_length=5, max_length=5)]
    num_attentions: Count
    num_heads: Annotated[int, Field(ge=1)]
    num_kv_heads: Annotated[int, Field(ge=1)]
    head_size: Annotated[int, Field(ge=1)]
    peak_bytes: Coefficients
    attention_bytes: Coefficients

    def work_of(self, num_tokens: int, num_text_tokens: int) -> Work:
        """The work for s and L tokens."""
        return Work(*(evaluate(each, num_tokens, num_text_tokens) for each in self.work))

    @property
    def heads(self) -> AttentionHeads:
        """The attentions across ranks."""
        return AttentionHeads(
            self.num_attentions, self.num_heads, self.num_kv_heads, self.head_size
        )


class TileCounts(StrictModel):
    """Decoding one tile of one shape in one dtype.

    Attributes:
        work: The fields of :class:`Work`, in its order.
        peak_bytes: Peak memory, including the tile and its pixels.
    """

    work: Annotated[tuple[Number, ...], Field(min_length=5, max_length=5)]
    peak_bytes: Count


class TextEncoderCounts(StrictModel):
    """Sizes of the text and picture encoders together.

    Attributes:
        parameters: All parameters.
        matrix_parameters: Those that every token is multiplied with: all but embeddings.
        layers: Modules that compute.
        streaming_parameters: Parameters on the device at a time if layers are brought there one by
            one; see :attr:`ModelCosts.text_streaming_parameters`.
    """

    parameters: Count
    matrix_parameters: Count
    layers: Count
    streaming_parameters: Count


class ModuleCounts(StrictModel):
    """Sizes of the modules.

    Attributes:
        transformer: Shapes of the transformer's parameters, of all experts.
        float32: Shapes of those that are float32 in every dtype.
        linears: Shapes of the weights of linear layers in all blocks.
        block_linears: Shapes of those in the largest block.
        num_experts: Transformers of which a pass runs one.
        block_parameters: Parameters of the largest block.
        non_block_parameters: Parameters of one expert outside of its blocks.
        autoencoder: Parameters of the autoencoder.
        text_encoders: Sizes of the text encoders; None if the family does not build them.
    """

    transformer: Shapes
    float32: Shapes
    linears: Shapes
    block_linears: Shapes
    num_experts: Annotated[int, Field(ge=1)]
    block_parameters: Count
    non_block_parameters: Count
    autoencoder: Count
    text_encoders: TextEncoderCounts | None


class Counts(StrictModel):
    """Everything counted of a model so far.

    Attributes:
        modules: Sizes of the modules; None before they were built.
        transformer: One pass, by bytes per element.
        tiles: Decoding, by :func:`tile_key`.
        spans: Tiles, by :func:`spans_key`.
    """

    modules: ModuleCounts | None = None
    transformer: dict[int, TransformerCounts] = {}
    tiles: dict[str, TileCounts] = {}
    spans: dict[str, tuple[tuple[StoredSpan, ...], ...]] = {}

    def adding(self, name: str, key: Any, value: Any) -> Counts:
        """A copy with one more entry of ``transformer``, ``tiles`` or ``spans``."""
        return self.model_copy(update={name: {**getattr(self, name), key: value}})


def tile_key(shape: Sequence[int], element_size: int) -> str:
    """The key of a tile of ``(f, h, w)`` latents."""
    return " ".join(map(str, (*shape, element_size)))


def spans_key(latents_shape: Sequence[int], request: ResolvedDecode) -> str:
    """The key of the tiles of ``(F, H, W)`` latents: all that tiling depends on."""
    sizes = [*latents_shape, *(request.decode_tile_size or ()), *(request.decode_tile_stride or ())]
    return " ".join(map(str, (request.decode, *sizes)))


def store_spans(spans: Spans) -> tuple[tuple[StoredSpan, ...], ...]:
    """Spans as numbers."""
    return tuple(
        tuple(
            (
                span.input_slice.start,
                span.input_slice.stop,
                span.output_slice.start,
                span.output_slice.stop,
                span.output_size,
                span.blend,
                span.keep,
            )
            for span in axis
        )
        for axis in spans
    )


def restore_spans(stored: Sequence[Sequence[StoredSpan]]) -> Spans:
    """The inverse of :func:`store_spans`."""
    times, rows, columns = (
        [
            Span(slice(start, stop), slice(out_start, out_stop), size, blend, keep)
            for start, stop, out_start, out_stop, size, blend, keep in axis
        ]
        for axis in stored
    )
    return times, rows, columns


WORK_FIELDS = tuple(each.name for each in fields(Work))
"""Fields of :class:`Work`, in the order in which they are stored."""


def store_work(work: Work) -> tuple[float, ...]:
    """Work as numbers, in the order of its fields."""
    return tuple(getattr(work, name) for name in WORK_FIELDS)
