"""Records intermediate values of a rendering, so that two renderings can be compared.

Legend: B videos, C channels, F H W latent frames, height and width, S tokens of a whole sequence, n
this rank's, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from longtake.parallel import ParallelDims, World
from longtake.parallel.mesh import CFG_AXIS, axis_rank
from longtake.pipelines.runtime.trace_points import BRANCHES, TracePoint, TraceRequest
from longtake.pipelines.spec import LatentGrid, shards_of

if TYPE_CHECKING:
    from longtake.pipelines.base import Denoiser


class Trace:
    """Records one rendering. Its methods are collective: all ranks call them.

    Args:
        request: What to record, the same on all ranks.
        world: All ranks.
        on_values: Called on rank 0 with each recorded tensor: the latents after each step,
            ``[B, C, F, H, W]``, and the input and output tokens of blocks, ``[B, S, D]``, in the
            order of the sequence and in the model's dtype. With true CFG, both branches are
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
        denoiser: Denoiser[Any],
        branches: Sequence[Any],
        grid: LatentGrid,
        dims: ParallelDims,
    ) -> Iterator[None]:
        """Record the blocks of the requested step while the enclosed code denoises.

        Args:
            denoiser: The transformer.
            blocks: Its blocks, in order.
            branches: Guidance branches that the denoiser is called with: the positive one and, with
                true CFG, the negative one.
            grid: Latent grid of the request.
            dims: The layout.
        """
        if self._request.blocks_of_step is None:
            yield
            return
        names = {module: name for name, module in denoiser.named_modules()}
        branch = 0

        def set_branch(module: nn.Module, args: tuple[Any, ...]) -> None:
            nonlocal branch
            branch = next(index for index, each in enumerate(branches) if each is args[-1])

        def record(number: int, block: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if self._step != self._request.blocks_of_step:
                return
            parts = output if isinstance(output, tuple) else (output,)
            if number == 1:
                inputs = self._gather(args[: len(parts)], branch, grid, dims)
                self._record_tokens(0, "", inputs)
            self._record_tokens(number, names[block], self._gather(parts, branch, grid, dims))

        with ExitStack() as hooks:
            hooks.enter_context(denoiser.register_forward_pre_hook(set_branch))
            for number, block in enumerate(denoiser.blocks, start=1):
                hooks.enter_context(block.register_forward_hook(partial(record, number)))
            yield

    def _gather(
        self, parts: Sequence[torch.Tensor], branch: int, grid: LatentGrid, dims: ParallelDims
    ) -> dict[int, torch.Tensor]:
        """Tokens ``[B, S, D]`` by branch, on rank 0: of the current branch or, with ``cfg_degree``
        2, of both.

        Args:
            parts: This rank's tokens, ``[B, n, D]`` when concatenated.
            branch: Index of the branch that this rank computes.
            grid: Latent grid of the request.
            dims: The layout.
        """
        own, mesh = torch.cat(list(parts), dim=1), self._world.mesh(dims)
        degree = dims.sequence_degree
        first = axis_rank(mesh, CFG_AXIS) * degree
        num_tokens = sum(self._world.gather_json(own.shape[1])[first : first + degree])
        shards, _, _ = shards_of(grid.num_tokens, num_tokens - grid.num_tokens, dims)
        whole = shards.gather(own, mesh, dim=1)
        if dims.cfg_degree == 1:
            return {branch: whole}
        received = self._world.broadcast_tensors({"tokens": whole}, source=degree)
        return {0: whole, 1: received["tokens"]}

    def _record_tokens(self, block: int, name: str, tokens: dict[int, torch.Tensor]) -> None:
        if self._world.rank == 0:
            for branch, whole in tokens.items():
                point = TracePoint(self._step, block, name, BRANCHES[branch])
                self._on_values(point, whole)
