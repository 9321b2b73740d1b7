"""Runs the blocks of a transformer, for every family.

What concerns blocks attaches here: tracing, and the weights that are not on the device before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import torch
from torch import nn

from longtake.pipelines.loading.weights import prefetch

Segments = Sequence[torch.Tensor]
"""This rank's tokens in parts, ``[B, n, D]`` each: ``[video tokens ; other tokens]``."""

OnBlock = Callable[[nn.Module, Segments, Segments], None]
"""Receives a block, its input and its output."""


class BlockWeights(Protocol):
    """Brings blocks' weights to the device. All ranks call it for the same blocks in one order."""

    def prefetch(self, block: nn.Module) -> None:
        """Start to bring a block's weights, unless they are there, or on their way."""

    def weights_of(self, block: nn.Module) -> AbstractContextManager[None]:
        """Hold a block's weights within the context, in which the block is called.

        Raises:
            EngineError: They cannot be read any more.
        """

    def free(self) -> None:
        """Free what only the blocks' calls need, until the next one."""


class WeightsOnDevice:
    """Weights that are whole on the device, or sharded over ranks: a block's call gathers them."""

    def prefetch(self, block: nn.Module) -> None:
        """Start to gather sharded weights."""
        prefetch(block)

    def weights_of(self, block: nn.Module) -> AbstractContextManager[None]:
        """Nothing to do: FSDP2 waits in the block's call, and frees after it."""
        return nullcontext()

    def free(self) -> None:
        """Nothing is held."""


class BlockRunner:
    """Runs blocks one after the other.

    Attributes:
        weights: Brings the blocks' weights to the device.
    """

    def __init__(self) -> None:
        self.weights: BlockWeights = WeightsOnDevice()
        self._on_block: OnBlock | None = None

    def __call__(
        self,
        blocks: Sequence[nn.Module],
        segments: list[torch.Tensor],
        *arguments: Any,
        then: nn.Module | None = None,
    ) -> list[torch.Tensor]:
        """Run blocks over this rank's tokens.

        The weights of the next block are brought to the device while a block computes.

        Args:
            blocks: Blocks in execution order. Each is called with the segments, then the arguments,
                and returns the segments.
            segments: This rank's tokens, in as many parts as the blocks take. The list is emptied,
                so that the first block's input is freed after it.
            arguments: Further arguments, the same for all blocks.
            then: The block that runs after these, in another call.

        Returns:
            The segments after the last block.
        """
        current: Segments = tuple(segments)
        segments.clear()
        for first in blocks[:1]:
            self.weights.prefetch(first)  # before the second block's
        for block, upcoming in zip(blocks, [*blocks[1:], then], strict=False):
            with self.weights.weights_of(block):
                if upcoming is not None:
                    self.weights.prefetch(upcoming)
                output = block(*current, *arguments)
            following = output if isinstance(output, tuple) else (output,)
            if self._on_block is not None:
                self._on_block(block, current, following)
            current = following
            del output, following
        return list(current)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Free the memory that blocks need only while they run, at the end of the context."""
        try:
            yield
        finally:
            self.weights.free()

    @contextmanager
    def observed(self, on_block: OnBlock) -> Iterator[None]:
        """Pass each block's input and output to a function within the context."""
        self._on_block = on_block
        try:
            yield
        finally:
            self._on_block = None
