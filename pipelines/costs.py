"""What a model's work comes to, by arithmetic on its configuration: no weights, no torch.

Units: floating-point operations (a multiply and an add are two), bytes, operations that the host
starts. Legend: s a rank's tokens, D width, e bytes an element.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

from longtake.configs.request import ResolvedDecode
from longtake.pipelines.tiles import Spans


@dataclass(frozen=True)
class Work:
    """What one device has to do, by what limits it.

    Attributes:
        linear_flops: of matrix products with weights.
        attention_flops: of attention.
        convolution_flops: of convolutions.
        memory_bytes: read and written by everything else: norms, gates, copies.
        launches: operations that the host starts.
    """

    linear_flops: float = 0.0
    attention_flops: float = 0.0
    convolution_flops: float = 0.0
    memory_bytes: float = 0.0
    launches: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(
            *(getattr(self, each.name) + getattr(other, each.name) for each in fields(self))
        )

    def __mul__(self, times: float) -> Work:
        return Work(*(getattr(self, each.name) * times for each in fields(self)))


@dataclass(frozen=True)
class AttentionHeads:
    """How often a pass through the transformer attends across ranks, and with what heads."""

    num_attentions: int
    num_heads: int
    num_kv_heads: int
    head_size: int

    @property
    def width(self) -> int:
        """Values of all query heads of one token."""
        return self.num_heads * self.head_size


class ModelCosts(ABC):
    """What the planner asks of a model family.

    Attributes:
        attention: its attention across ranks.
        token_values: values of one token as the denoising loop holds it, in float32.
    """

    attention: AttentionHeads
    token_values: int

    @property
    @abstractmethod
    def transformer_shapes(self) -> Sequence[tuple[int, ...]]:
        """The shape of every parameter of the transformer."""

    @property
    @abstractmethod
    def block_parameters(self) -> int:
        """Parameters of its largest block, which come together where weights are split."""

    @property
    @abstractmethod
    def parameters_outside(self) -> int:
        """Parameters of the transformer that are in no block: together for the whole pass."""

    @property
    @abstractmethod
    def other_parameters(self) -> Mapping[str, int]:
        """Parameters of what is not the transformer: ``autoencoder``, ``text_encoders``."""

    @abstractmethod
    def transformer_pass(self, num_tokens: int, num_text_tokens: int, element_size: int) -> Work:
        """One pass of one rank through the transformer, without its attention across ranks.

        Args:
            num_tokens: of this rank, of video and text.
            num_text_tokens: of the whole prompt, which every rank refines.
            element_size: bytes.
        """

    @abstractmethod
    def activation_bytes(
        self,
        num_tokens: int,
        element_size: int,
        *,
        ulysses: bool,
        ring: bool,
        head_share: float,
    ) -> int:
        """The most that one pass holds at one time beside the weights, buffers included.

        Args:
            num_tokens: of this rank, of video and text, of all videos.
            ulysses, ring: whether it is split so.
            head_share: heads of this rank, over an even share of them.
        """

    @abstractmethod
    def text_encoding(self, max_tokens: int, element_size: int) -> Work:
        """Encoding one prompt."""

    @abstractmethod
    def decode_spans(self, latents_shape: Sequence[int], request: ResolvedDecode) -> Spans:
        """The tiles of latents of ``(F, H, W)``."""

    @abstractmethod
    def tile_decoding(self, cells: Sequence[int], element_size: int) -> Work:
        """Decoding one tile of ``(f, h, w)`` latents."""

    @abstractmethod
    def tile_bytes(self, cells: Sequence[int], element_size: int) -> int:
        """The most that decoding one tile holds at one time."""

    @property
    def transformer_parameters(self) -> int:
        """Parameters of the transformer."""
        return count(self.transformer_shapes)


def count(shapes: Sequence[tuple[int, ...]]) -> int:
    """Values of some shapes together."""
    return sum(map(math.prod, shapes))
