"""Weights from safetensors files into a module: read once a host, whole or split over all ranks."""

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
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from longtake.errors import ModelError, one_line
from longtake.parallel import World
from longtake.parallel.exchange import broadcast
from longtake.pipelines.model_files import check_tensors, read_tensors
from longtake.pipelines.tensor_files import open_tensors


def load_weights(
    module: nn.Module, files: Sequence[Path], world: World, dtype: torch.dtype
) -> None:
    """Fill a module that was built on the ``meta`` device, on all ranks together.

    One rank a host reads each tensor from disk and hands it to the others there, which keep it
    whole, or their part of it where the module is split. One tensor at a time is held beside the
    module's own.

    Args:
        module: with every parameter and buffer on ``meta``; afterwards on ``world.device``.
        files: safetensors, checked before.
        dtype: floating-point parameters become this.

    Raises:
        ModelError: a tensor is missing, is too many, or has another shape.
    """
    # torch's set_model_state_dict(broadcast_from_rank0) cannot do this: global rank 0 alone reads,
    # not one rank a host; names and shapes travel as pickles, which are never unpickled here; and
    # tensors travel in the dtype of the files, not of the module.
    shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    check_tensors(read_tensors(files), shapes, files[0].parent)
    nn.Module.to(module, dtype)  # diffusers' own `to` warns of weights that are not there yet
    module.to_empty(device=world.device)
    state = module.state_dict()
    with _open_all(files) as tensors:
        group = world.host_group
        reads = group is None or dist.get_rank(group) == 0
        for name in sorted(state):
            target = state[name]
            if reads:
                whole = _read(tensors[name], name, files).to(world.device, target.dtype)
            else:
                whole = torch.empty(target.shape, dtype=target.dtype, device=world.device)
            if group is not None and dist.get_world_size(group) > 1:
                broadcast(whole, 0, group)
            _fill(target, whole)


def shard_module(module: nn.Module, blocks: Sequence[nn.Module], world: World) -> None:
    """Split a module's weights over all ranks; each block's come together while it computes.

    Each rank holds 1/N of every parameter (FSDP2). While one block computes, the next one's
    weights are fetched.

    Args:
        module: whose own forward runs the blocks; its other weights come together once a forward.
        blocks: its submodules, in the order in which they run.
    """
    if world.size == 1:
        return
    mesh = world.flat_mesh()
    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(module, mesh=mesh, reshard_after_forward=True)
    for block, following in zip(blocks, blocks[1:], strict=False):
        block.set_modules_to_forward_prefetch([following])  # type: ignore[operator]


def read_weights(files: Sequence[Path]) -> dict[str, torch.Tensor]:
    """The tensors of some files, by name; those of a large file stay on the disk until used.

    Args:
        files: safetensors, checked before.

    Raises:
        ModelError: a tensor cannot be read.
    """
    with _open_all(files) as tensors:
        return {name: _read(file, name, files) for name, file in tensors.items()}


def local_weight_bytes(module: nn.Module) -> int:
    """Bytes of the parameters that this rank holds."""
    return sum(
        (local if (local := _local(parameter)) is not None else parameter).nbytes
        for parameter in module.parameters()
    )


def all_gather_bytes(module: nn.Module) -> int:
    """Bytes that this rank sends to others each time the module's forward runs: its split weights.

    Each rank's rows go to every other rank once; where rows do not divide, FSDP2 pads them.
    """
    sent = 0
    for parameter in module.parameters():
        if isinstance(parameter, DTensor):
            ranks = parameter.device_mesh.size()
            rows = -(-parameter.shape[0] // ranks)
            sent += rows * math.prod(parameter.shape[1:]) * parameter.element_size() * (ranks - 1)
    return sent


def _local(tensor: torch.Tensor) -> torch.Tensor | None:
    return tensor.to_local() if isinstance(tensor, DTensor) else None


@torch.no_grad()
def _fill(target: torch.Tensor, whole: torch.Tensor) -> None:
    if isinstance(target, DTensor):
        part = distribute_tensor(whole, target.device_mesh, target.placements, src_data_rank=None)
        target.to_local().copy_(part.to_local())
    else:
        target.copy_(whole)


@contextmanager
def _open_all(files: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """The file that holds each tensor, by the tensor's name."""
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
