"""Loads weights from safetensors files into modules, whole or sharded over all ranks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from longtake.errors import ModelError, one_line
from longtake.parallel import World
from longtake.parallel.exchange import broadcast
from longtake.pipelines.loading.model_files import check_tensors, read_tensors
from longtake.pipelines.loading.tensor_files import open_tensors


def load_weights(
    module: nn.Module, files: Sequence[Path], world: World, dtype: torch.dtype
) -> None:
    """Load weights into a module that was built on the ``meta`` device. Collective.

    One rank per host reads each tensor from disk and broadcasts it to the other ranks of the host.
    Each rank keeps the whole tensor or, if the module is sharded, its shard. At most one tensor is
    held in addition to the module's own.

    Args:
        module: A module whose parameters and buffers are all on ``meta``; afterwards they are on
            ``world.device``.
        files: The component's safetensors files, already checked.
        world: All ranks.
        dtype: Dtype that floating-point parameters are converted to.

    Raises:
        ModelError: A tensor is missing, unexpected, or of the wrong shape.
    """
    # torch's set_model_state_dict(broadcast_from_rank0) does not fit: only global rank 0 reads, not
    # one rank per host; names and shapes are sent pickled, and longtake unpickles nothing; and
    # tensors are sent in the dtype of the files, not of the module.
    shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    check_tensors(read_tensors(files), shapes, files[0].parent)
    nn.Module.to(module, dtype)  # diffusers' own `to` warns about meta tensors
    module.to_empty(device=world.device)
    state = module.state_dict()
    with _open_all(files) as tensors:
        group = world.host_group
        is_reader = group is None or dist.get_rank(group) == 0
        for name in sorted(state):
            target = state[name]
            if is_reader:
                whole = _read(tensors[name], name, files).to(world.device, target.dtype)
            else:
                whole = torch.empty(target.shape, dtype=target.dtype, device=world.device)
            if group is not None and dist.get_world_size(group) > 1:
                broadcast(whole, 0, group)
            _fill(target, whole)


def shard_module(module: nn.Module, blocks: Sequence[nn.Module], world: World) -> None:
    """Shard a module's weights over all ranks (FSDP2): each rank holds 1/N of every parameter.

    A block's weights are gathered before it runs, while the previous block computes. The weights
    outside of blocks are gathered once per forward. No-op on one rank.

    Args:
        module: A module whose ``forward`` runs the blocks.
        blocks: Its blocks, in execution order.
        world: All ranks.
    """
    if world.size == 1:
        return
    mesh = world.flat_mesh()
    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(module, mesh=mesh, reshard_after_forward=True)
    for block, following in zip(blocks, blocks[1:], strict=False):
        block.set_modules_to_forward_prefetch([following])  # type: ignore[operator]


def prefetch(block: nn.Module) -> None:
    """Start to gather a block's sharded weights; a no-op for a block that is whole."""
    if isinstance(block, FSDPModule):
        block.unshard(async_op=True)


def read_weights(files: Sequence[Path]) -> dict[str, torch.Tensor]:
    """The tensors of safetensors files, by name; memory-mapped, so read from disk on use.

    Args:
        files: The component's safetensors files, already checked.

    Raises:
        ModelError: A tensor cannot be read.
    """
    with _open_all(files) as tensors:
        return {name: _read(file, name, files) for name, file in tensors.items()}


def all_gather_bytes(module: nn.Module) -> int:
    """Bytes that this rank sends in one forward to gather sharded weights; 0 if none are sharded.

    Each rank sends its rows to every other rank once. FSDP2 pads rows that do not divide evenly.
    """
    sent = 0
    for parameter in module.parameters():
        if isinstance(parameter, DTensor):
            ranks = parameter.device_mesh.size()
            rows = -(-parameter.shape[0] // ranks)
            sent += rows * math.prod(parameter.shape[1:]) * parameter.element_size() * (ranks - 1)
    return sent


@torch.no_grad()
def _fill(target: torch.Tensor, whole: torch.Tensor) -> None:
    """Copy a whole tensor, or this rank's shard of it, into ``target``."""
    if isinstance(target, DTensor):
        shard = distribute_tensor(whole, target.device_mesh, target.placements, src_data_rank=None)
        target.to_local().copy_(shard.to_local())
    else:
        target.copy_(whole)


@contextmanager
def _open_all(files: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """Open files; yields the open file of each tensor, by the tensor's name."""
    with ExitStack() as stack:
        opened = [stack.enter_context(open_tensors(file, "pt")) for file in files]
        yield {name: file for file in opened for name in file.keys()}


def _read(file: Any, name: str, files: Sequence[Path]) -> torch.Tensor:
    try:
        tensor: torch.Tensor = file.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{name} cannot be read from {files[0].parent}: {one_line(error)}"
        ) from error
    return tensor
