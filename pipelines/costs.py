"""Cost model of a model family: arithmetic on its configuration; needs no weights and no torch.

Units: floating-point operations (a multiply-add counts as two), bytes, kernel launches.
Legend: s a rank's tokens, D width, e bytes per element.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import ClassVar

from longtake.configs.request import ResolvedDecode
from longtake.pipelines.codec.tiles import Spans
from longtake.pipelines.quantization.sizes import Storage, stored_bytes

_FLOAT32_BYTES = 4

_BLOCK_INDEX_BYTES, _BLOCK_MOVED_BYTES, _BLOCK_LAUNCHES = 7.2, 28.0, 20
"""Bytes per value and operations of decoding blocks of GGUF: the most memory of all types, and the
mean of the traffic of types of two to six bits. Counted in calls on the meta device."""


@dataclass(frozen=True)
class Work:
    """Work of one device, by the resource that limits it.

    Attributes:
        linear_flops: Floating-point operations of matrix products with weights.
        attention_flops: Floating-point operations of attention.
        convolution_flops: Floating-point operations of convolutions.
        memory_bytes: Bytes read and written by all other operations: norms, gates, copies.
        launches: Number of kernel launches.
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
    """Number and head layout of the attentions across ranks in one transformer pass."""

    num_attentions: int
    num_heads: int
    num_kv_heads: int
    head_size: int

    @property
    def width(self) -> int:
        """Values of one token over all query heads."""
        return self.num_heads * self.head_size


class ModelCosts(ABC):
    """Costs of a model family, as used by the planner.

    Attributes:
        attention: The attention across ranks.
        token_values: Values per token in the denoising loop, in float32.
        num_experts: Transformers of the same sizes, of which a pass runs one.
        file_element_size: Bytes of a transformer's parameter in published files.
    """

    attention: AttentionHeads
    token_values: int
    num_experts: int = 1
    file_element_size: ClassVar[int] = 2

    @property
    @abstractmethod
    def transformer_shapes(self) -> Sequence[tuple[int, ...]]:
        """Shapes of all transformer parameters, of all experts."""

    @property
    @abstractmethod
    def block_parameters(self) -> int:
        """Parameters of the largest block, the unit that sharded weights are gathered in."""

    @property
    @abstractmethod
    def non_block_parameters(self) -> int:
        """Parameters of one expert outside any block; gathered for the whole pass."""

    @property
    @abstractmethod
    def other_parameters(self) -> Mapping[str, int]:
        """Parameters of ``autoencoder`` and ``text_encoders``, by name."""

    @property
    def text_streaming_parameters(self) -> int:
        """Parameters on the device at a time while prompts are encoded layer by layer.

        Those are two of an encoder's largest layer, and those outside of layers except the token
        embedding, which stays on the host. By default, all of the text encoders.
        """
        return self.other_parameters["text_encoders"]

    @abstractmethod
    def transformer_pass(self, num_tokens: int, num_text_tokens: int, element_size: int) -> Work:
        """Work of one transformer pass on one rank, excluding attention across ranks.

        Args:
            num_tokens: Video and text tokens of this rank.
            num_text_tokens: Tokens of the whole prompt, which every rank refines.
            element_size: Bytes per element.
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
        """Peak activation memory of one pass in bytes, including buffers, excluding weights.

        Args:
            num_tokens: Video and text tokens of this rank, over all videos.
            element_size: Bytes per element.
            ulysses: Whether attention is split over the Ulysses axis.
            ring: Whether attention is split over the ring axis.
            head_share: Heads of this rank, divided by an even share of the heads.
        """

    @abstractmethod
    def text_encoding(self, max_tokens: int, element_size: int) -> Work:
        """Work of encoding one prompt."""

    def picture_encoding(self, latents_shape: Sequence[int], element_size: int) -> Work:
        """Work of the autoencoder on the pictures of a request; none by default.

        Args:
            latents_shape: Shape ``(F, H, W)`` of the video's latents.
            element_size: Bytes per element.
        """
        return Work()

    def picture_bytes(self, latents_shape: Sequence[int], element_size: int) -> int:
        """Peak memory of :meth:`picture_encoding`, in bytes; 0 by default, less than a tile's.

        Args:
            latents_shape: Shape ``(F, H, W)`` of the video's latents.
            element_size: Bytes per element.
        """
        return 0

    @abstractmethod
    def decode_spans(self, latents_shape: Sequence[int], request: ResolvedDecode) -> Spans:
        """Tiles of latents of shape ``(F, H, W)``."""

    @abstractmethod
    def tile_decoding(self, shape: Sequence[int], element_size: int) -> Work:
        """Work of decoding one tile of ``(f, h, w)`` latents."""

    @abstractmethod
    def tile_bytes(self, shape: Sequence[int], element_size: int) -> int:
        """Peak memory of decoding one tile, in bytes."""

    @property
    def float32_shapes(self) -> Sequence[tuple[int, ...]]:
        """Shapes of the transformer parameters that stay float32 in every dtype."""
        return ()

    @property
    def linear_shapes(self) -> Sequence[tuple[int, ...]]:
        """Shapes of the weights that may be stored in fewer bits, of all experts: those of linear
        layers in blocks. None by default: they are then counted whole."""
        return ()

    @property
    def block_linear_shapes(self) -> Sequence[tuple[int, ...]]:
        """Those of :attr:`linear_shapes` in the largest block."""
        return ()

    @cached_property
    def transformer_parameters(self) -> int:
        """Number of transformer parameters, of all experts."""
        return count(self.transformer_shapes)

    def transformer_bytes(
        self, element_size: int, ranks: int = 1, storage: Storage | None = None
    ) -> int:
        """Bytes of all transformer parameters on each of the ranks that they are sharded over.

        Args:
            element_size: Bytes per element.
            ranks: Number of ranks. Shards are rows, and FSDP2 pads those of the last ranks.
            storage: Type of fewer bits that weights are stored in; None without.
        """
        known, key = self._transformer_bytes, (element_size, ranks, storage)
        if key not in known:
            wider = max(0, _FLOAT32_BYTES - element_size)
            whole = element_size * _shard_values(self.transformer_shapes, ranks)
            whole += wider * _shard_values(self.float32_shapes, ranks)
            known[key] = whole - _bytes_saved(self.linear_shapes, element_size, ranks, storage)
        return known[key]

    @cached_property
    def _transformer_bytes(self) -> dict[tuple[int, int, Storage | None], int]:
        """Results of :meth:`transformer_bytes`, which plans need for each of their layouts."""
        return {}

    def block_bytes(self, element_size: int, storage: Storage | None = None) -> int:
        """Bytes of the parameters of the largest block.

        Args:
            element_size: Bytes per element; also of those that are float32 in every dtype.
            storage: Type of fewer bits that weights are stored in; None without.
        """
        whole = element_size * self.block_parameters
        return whole - _bytes_saved(self.block_linear_shapes, element_size, 1, storage)

    def decoded_bytes(self, element_size: int, storage: Storage | None) -> int:
        """Memory in which the largest weight that is stored in fewer bits is decoded for its use.

        Args:
            element_size: Bytes per element of the decoded weight.
            storage: Type that it is stored in; None takes none.
        """
        if storage is None:
            return 0
        largest = max(map(math.prod, self.block_linear_shapes), default=0)
        return int(largest * (element_size + _index_bytes(storage)))

    def weight_decoding(self, element_size: int, storage: Storage | None) -> Work:
        """Work of decoding the weights of one expert that are stored in fewer bits, once a pass.

        A feed-forward over several chunks of tokens decodes its weights for each, which is not
        counted: at most 2 % of such a pass.

        Args:
            element_size: Bytes per element of the decoded weights.
            storage: Type that they are stored in; None takes none.
        """
        if storage is None:
            return Work()
        bytes_moved = 0.0
        for rows, columns in self.linear_shapes:
            stored, values = stored_bytes(rows, columns, storage), rows * columns
            bytes_moved += stored + values * _moved_bytes(storage, element_size)
        launches = len(self.linear_shapes) * _launches(storage)
        return Work(memory_bytes=bytes_moved, launches=launches) * (1 / self.num_experts)


def _bytes_saved(
    shapes: Sequence[tuple[int, ...]], element_size: int, ranks: int, storage: Storage | None
) -> int:
    """Bytes by which weights in fewer bits are smaller on each of the ranks."""
    if storage is None:
        return 0
    saved = 0
    for all_rows, columns in shapes:
        rows = -(-all_rows // ranks)
        saved += element_size * rows * columns - stored_bytes(rows, columns, storage)
    return saved


def _index_bytes(storage: Storage) -> float:
    """Bytes per value that decoding needs beside the decoded weight.

    Two levels of nf4 are looked up with an int32. Blocks of GGUF are decoded in float32, those of
    IQ4 with an int32 a value.
    """
    if not isinstance(storage, str):
        return _BLOCK_INDEX_BYTES
    return 2.0 if storage == "nf4" else 0.0


def _moved_bytes(storage: Storage, element_size: int) -> float:
    """Bytes per value that decoding moves beside the codes."""
    if not isinstance(storage, str):
        return _BLOCK_MOVED_BYTES
    # Codes are looked up or converted; then the scales multiply in place.
    return 3 * element_size + 2 * _index_bytes(storage)


def _launches(storage: Storage) -> int:
    """Operations of decoding one weight."""
    if not isinstance(storage, str):
        return _BLOCK_LAUNCHES
    return 3 if storage == "nf4" else 2


def _shard_values(shapes: Sequence[tuple[int, ...]], ranks: int) -> int:
    """Values of the largest shard of each tensor."""
    return sum(-(-rows // ranks) * math.prod(rest) for rows, *rest in shapes)


def count(shapes: Sequence[tuple[int, ...]]) -> int:
    """Total number of values of tensors of these shapes."""
    return sum(map(math.prod, shapes))
