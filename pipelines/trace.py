"""What is recorded of a rendering on its way, so that two can be compared.

Legend: B videos, C channels, F H W latent frames, height and width, S tokens of a whole sequence, n
this rank's, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from longtake.parallel import ParallelDims, World
from longtake.parallel.mesh import CFG_AXIS, axis_rank
from longtake.pipelines.spec import LatentGrid, shards_of
from longtake.pipelines.trace_points import BRANCHES, TracePoint, TraceRequest

if TYPE_CHECKING:
    pass


class Trace:
    """Records one rendering, on all ranks together.

    Args:
        request: the same on all ranks.
        world: all ranks.
        take: called on rank 0, with the latents after each step, ``[B, C, F, H, W]``, and with the
            tokens that go into and come out of blocks, ``[B, S, D]`` in the order of the sequence,
            in the model's dtype. Of true CFG both branches' are taken. One at a time is held.
    """

    def __init__(
        self,
        request: TraceRequest,
        world: World,
        take: Callable[[TracePoint, torch.Tensor], None],
    ) -> None:
        self._request = request
        self._world = world
        self._take = take
        self._step = 1

    def after_step(self, done: int, latents: torch.Tensor) -> None:
        """Record the latents after a step."""
        if self._world.rank == 0:
            self._take(TracePoint(done), latents)
        self._step = done + 1

    @contextmanager
    def watching(
        self,
        denoiser: nn.Module,
        blocks: Iterable[nn.Module],
        branches: Sequence[Any],
        grid: LatentGrid,
        dims: ParallelDims,
    ) -> Iterator[None]:
        """Look at the blocks while the enclosed lines denoise.

        Args:
            denoiser: The transformer.
            blocks: Its blocks, in order.
            branches: that the denoiser is called with: the positive and, of true CFG, the negative.
        """
        if self._request.blocks_of_step is None:
            yield
            return
        names = {module: name for name, module in denoiser.named_modules()}
        running = 0

        def begin(module: nn.Module, args: tuple[Any, ...]) -> None:
            nonlocal running
            running = next(at for at, branch in enumerate(branches) if branch is args[-1])

        def record(number: int, block: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if self._step != self._request.blocks_of_step:
                return
            parts = output if isinstance(output, tuple) else (output,)
            if number == 1:
                self._take_tokens(0, "", self._gathered(args[: len(parts)], running, grid, dims))
            self._take_tokens(number, names[block], self._gathered(parts, running, grid, dims))

        with ExitStack() as hooks:
            hooks.enter_context(denoiser.register_forward_pre_hook(begin))
            for number, block in enumerate(blocks, start=1):
                hooks.enter_context(block.register_forward_hook(partial(record, number)))
            yield

    def _gathered(
        self, parts: Sequence[torch.Tensor], running: int, grid: LatentGrid, dims: ParallelDims
    ) -> dict[int, torch.Tensor]:
        """On rank 0: ``[B, S, D]`` of the branch that runs, or of both where they do at once.

        Args:
            parts: this rank's tokens, ``[B, n, D]`` in all.
            running: number of the branch that this rank computes.
        """
        own, mesh, degree = (
            torch.cat(list(parts), dim=1),
            self._world.mesh(dims),
            dims.sequence_degree,
        )
        first = axis_rank(mesh, CFG_AXIS) * degree
        num_tokens = sum(self._world.gather_json(own.shape[1])[first : first + degree])
        shards, _, _ = shards_of(grid.num_tokens, num_tokens - grid.num_tokens, dims)
        whole = shards.gather(own, mesh, dim=1)
        if dims.cfg_degree == 1:
            return {running: whole}
        received = self._world.broadcast_tensors({"tokens": whole}, source=degree)
        return {0: whole, 1: received["tokens"]}

    def _take_tokens(self, block: int, name: str, tokens: dict[int, torch.Tensor]) -> None:
        if self._world.rank == 0:
            for branch, whole in tokens.items():
                self._take(TracePoint(self._step, block, name, BRANCHES[branch]), whole)
