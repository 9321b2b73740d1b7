"""Runs the blocks of a transformer, for every family.

What concerns blocks attaches here: tracing, and the prefetch of sharded weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from longtake.pipelines.loading.weights import prefetch

Segments = Sequence[torch.Tensor]
"""This rank's tokens in parts, ``[B, n, D]`` each: ``[video tokens ; other tokens]``."""

OnBlock = Callable[[nn.Module, Segments, Segments], None]
"""Receives a block, its input and its output."""


class BlockRunner:
    """Runs blocks one after the other."""

    def __init__(self) -> None:
        self._on_block: OnBlock | None = None

    def __call__(
        self,
        blocks: Sequence[nn.Module],
        segments: list[torch.Tensor],
        *arguments: Any,
        then: nn.Module | None = None,
    ) -> list[torch.Tensor]:
        """Run blocks over this rank's tokens.

        The weights of the next block are gathered while a block computes, if they are sharded.

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
            prefetch(first)  # so that its weights are gathered before those of the second
        for block, upcoming in zip(blocks, [*blocks[1:], then], strict=False):
            if upcoming is not None:
                prefetch(upcoming)
            output = block(*current, *arguments)
            following = output if isinstance(output, tuple) else (output,)
            if self._on_block is not None:
                self._on_block(block, current, following)
            current = following
            del output, following
        return list(current)

    @contextmanager
    def observed(self, on_block: OnBlock) -> Iterator[None]:
        """Pass each block's input and output to a function within the context."""
        self._on_block = on_block
        try:
            yield
        finally:
            self._on_block = None
