"""Records intermediate values of a rendering, so that two renderings can be compared.

Legend: B videos, C channels, F H W latent frames, height and width, S tokens of a whole sequence, n
this rank's, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from longtake.parallel import World
from longtake.parallel.mesh import CFG_AXIS, axis_rank
from longtake.pipelines.layout import VideoLayout
from longtake.pipelines.runtime.block_runner import BlockRunner, Segments
from longtake.pipelines.runtime.trace_points import BRANCHES, TracePoint, TraceRequest
from longtake.pipelines.spec import shards_of


class Trace:
    """Records one rendering. Its methods are collective: all ranks call them.

    Args:
        request: What to record, the same on all ranks.
        world: All ranks.
        on_values: Called on rank 0 with each recorded tensor: the latents after each step,
            ``[B, C, F, H, W]``, and the input and output tokens of blocks, ``[B, S, D]``, in the
            order of the sequence and in the model's dtype. With guidance, both branches are
            recorded. One tensor is held at a time.
    """

    def __init__(
        self,
        request: TraceRequest,
        world: World,
        on_values: Callable[[TracePoint, torch.Tensor], None],
    ) -> None:
        self._request = request
        self._world = world
        self._on_values = on_values
        self._step = 1

    def after_step(self, done: int, latents: torch.Tensor) -> None:
        """Record the latents after step ``done``."""
        if self._world.rank == 0:
            self._on_values(TracePoint(done), latents)
        self._step = done + 1

    @contextmanager
    def record_blocks(
        self,
        denoiser: nn.Module,
        run_blocks: BlockRunner,
        passes: Sequence[Any],
        layout: VideoLayout,
    ) -> Iterator[None]:
        """Record the blocks of the requested step while the enclosed code denoises.

        Args:
            denoiser: The transformer.
            run_blocks: Runs its blocks.
            passes: Inputs that the denoiser is called with: those of the prompt and, with
                classifier-free guidance, of the negative prompt.
            layout: The video's tokens and their owners.
        """
        if self._request.blocks_of_step is None:
            yield
            return
        names = {module: name for name, module in denoiser.named_modules()}
        branch = number = 0

        def begin_pass(module: nn.Module, args: tuple[Any, ...]) -> None:
            nonlocal branch, number
            branch = next(index for index, each in enumerate(passes) if each is args[-1])
            number = 0

        def record(block: nn.Module, inputs: Segments, outputs: Segments) -> None:
            nonlocal number
            number += 1
            if self._step != self._request.blocks_of_step:
                return
            if number == 1:
                self._record_tokens(0, "", self._gather(inputs, branch, layout))
            self._record_tokens(number, names[block], self._gather(outputs, branch, layout))

        with denoiser.register_forward_pre_hook(begin_pass), run_blocks.observed(record):
            yield

    def _gather(
        self, segments: Segments, branch: int, layout: VideoLayout
    ) -> dict[int, torch.Tensor]:
        """Tokens ``[B, S, D]`` by branch, on rank 0: of the current branch or, with ``cfg_degree``
        2, of both.

        Args:
            segments: This rank's tokens, ``[B, n, D]`` when concatenated.
            branch: Index of the branch that this rank computes.
            layout: The video's tokens and their owners.
        """
        own, dims = torch.cat(list(segments), dim=1), layout.dims
        degree = dims.sequence_degree
        first = axis_rank(layout.mesh, CFG_AXIS) * degree
        num_tokens = sum(self._world.gather_json(own.shape[1])[first : first + degree])
        num_video_tokens = layout.grid.num_tokens
        shards, _, _ = shards_of(num_video_tokens, num_tokens - num_video_tokens, dims)
        whole = shards.gather(own, layout.mesh, dim=1)
        if dims.cfg_degree == 1:
            return {branch: whole}
        received = self._world.broadcast_tensors({"tokens": whole}, source=degree)
        return {0: whole, 1: received["tokens"]}

    def _record_tokens(self, block: int, name: str, tokens: dict[int, torch.Tensor]) -> None:
        if self._world.rank == 0:
            for branch, whole in tokens.items():
                point = TracePoint(self._step, block, name, BRANCHES[branch])
                self._on_values(point, whole)
