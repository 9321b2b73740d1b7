"""Loads tensors into modules, whole or sharded over all ranks, and gathers sharded weights."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from types import MappingProxyType

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from longtake.errors import ModelError
from longtake.parallel import World
from longtake.parallel.exchange import broadcast
from longtake.pipelines.loading.files.model_files import check_tensors
from longtake.pipelines.loading.tensor_source import TensorSource, read_into
from longtake.pipelines.loading.threads import in_order
from longtake.pipelines.quantization.linear import stored_dtypes

_NO_BUFFERS: Mapping[str, torch.Tensor] = MappingProxyType({})


def load_weights(
    module: nn.Module,
    source: TensorSource,
    world: World,
    dtype: torch.dtype,
    *,
    float32: re.Pattern[str] | None = None,
    buffers: Mapping[str, torch.Tensor] = _NO_BUFFERS,
    elsewhere: Collection[str] = (),
) -> None:
    """Load weights into a module that was built on the ``meta`` device. Collective.

    One rank per host reads each tensor and broadcasts it to the other ranks of the host. If the
    module is sharded, each rank reads its own rows, and nothing is sent. A few threads read.

    Args:
        module: A module whose parameters and buffers are all on ``meta``; afterwards they are on
            ``world.device``.
        source: The module's parameters and persistent buffers, by their names in the module.
        world: All ranks.
        dtype: Dtype that floating-point tensors of ``source`` are converted to, but for codes and
            scales of layers that are stored in fewer bits.
        float32: Pattern, searched in the names of ``source``, of those converted to float32.
        buffers: Values of the buffers that no state dict holds, by their names in the module.
            Floating-point ones are converted to float32.
        elsewhere: Tensors of ``source`` that are checked, and stay on ``meta``.

    Raises:
        ModelError: A tensor or a buffer is missing, unexpected, or of the wrong shape, or a tensor
            cannot be read.
    """
    # torch's set_model_state_dict(broadcast_from_rank0) does not fit: only global rank 0 reads, not
    # one rank per host; names and shapes are sent pickled, and longtake unpickles nothing; and
    # tensors are sent in the dtype of the files, not of the module.
    state = module.state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    stored = stored_dtypes(module)
    check_tensors(source.tensors, shapes, source.label, encoded=stored)
    _check_buffers(module, buffers)

    def targets() -> Iterator[tuple[str, torch.Tensor]]:
        for name in sorted(shapes.keys() - elsewhere):
            own_dtype = stored.get(name) or loaded_dtype(name, dtype, float32)
            state[name] = torch.empty_like(state[name], dtype=own_dtype, device=world.device)
            yield name, state[name]

    fill(targets(), source, world)
    module.load_state_dict(state, assign=True)
    for name, values in buffers.items():
        owner, _, leaf = name.rpartition(".")
        own_dtype = torch.float32 if values.is_floating_point() else values.dtype
        own = values.to(world.device, own_dtype, copy=True)
        module.get_submodule(owner).register_buffer(leaf, own, persistent=False)


def loaded_dtype(
    name: str, dtype: torch.dtype, float32: re.Pattern[str] | None = None
) -> torch.dtype:
    """Dtype that a tensor is converted to; see :func:`load_weights`."""
    return torch.float32 if float32 is not None and float32.search(name) else dtype


def shard_module(module: nn.Module, blocks: Iterable[nn.Module], world: World) -> None:
    """Shard a module's weights over all ranks (FSDP2): each rank holds 1/N of every parameter.

    A block's weights are gathered when it is called, or from :func:`prefetch` on, and freed after
    it. The weights outside of blocks are gathered when ``module`` is called. Experts of which a
    step runs one are sharded one by one, so that a step gathers only the expert that it calls.
    No-op on one rank.

    Args:
        module: A module on ``meta``, whose ``forward`` calls the blocks. Its parameters will need
            no gradients: only then may a block's dtypes differ.
        blocks: Its blocks, in any order.
        world: All ranks.
    """
    if world.size == 1:
        return
    module.requires_grad_(False)
    mesh = world.flat_mesh()
    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(module, mesh=mesh, reshard_after_forward=True)


def prefetch(block: nn.Module) -> None:
    """Start to gather a block's sharded weights; its next call waits for them.

    All ranks must start the same blocks in the same order. No-op if the block is not sharded, or
    its weights are there or on their way.
    """
    if isinstance(block, FSDPModule):
        block.unshard(async_op=True)


def all_gather_bytes(module: nn.Module) -> int:
    """Bytes that this rank sends in one forward to gather sharded weights; 0 if none are sharded.

    Each rank sends its rows of each parameter to every other rank once, in the parameter's dtype.
    FSDP2 pads rows that do not divide evenly.
    """
    sent = 0
    for parameter in module.parameters():
        if isinstance(parameter, DTensor):
            row_bytes = math.prod(parameter.shape[1:]) * parameter.element_size()
            sent += _rows_per_rank(parameter) * row_bytes * (parameter.device_mesh.size() - 1)
    return sent


def _check_buffers(module: nn.Module, buffers: Mapping[str, torch.Tensor]) -> None:
    """Check that the buffers given are those that the module keeps out of its state dict."""
    state, kind = module.state_dict(), type(module).__name__
    expected = {name: each for name, each in module.named_buffers() if name not in state}
    if missing := sorted(expected.keys() - buffers.keys()):
        raise ModelError(
            f"nothing fills the buffer {missing[0]} of {kind} ({len(missing)} missing), which no "
            "file holds: the family must pass its values in buffers"
        )
    if unknown := sorted(buffers.keys() - expected.keys()):
        raise ModelError(
            f"buffers holds {unknown[0]}, which {kind} does not keep out of its files: it keeps "
            f"{', '.join(sorted(expected)) or 'none'}"
        )
    for name, buffer in expected.items():
        if buffers[name].shape != buffer.shape:
            raise ModelError(
                f"buffers holds {name} of shape {tuple(buffers[name].shape)}, {kind} has it of "
                f"{tuple(buffer.shape)}: compute it from the same configuration"
            )


def fill(targets: Iterable[tuple[str, torch.Tensor]], source: TensorSource, world: World) -> None:
    """Fill whole tensors, or this rank's rows of sharded ones. Collective.

    Args:
        targets: Names in the source, those of a layer one after the other; and tensors of any
            floating-point dtype on ``world.device``, or DTensors. The same on all ranks.
        source: The source. One rank a host reads a whole tensor.
        world: All ranks.

    Raises:
        ModelError: A tensor cannot be read.
    """
    layers = itertools.groupby(targets, lambda target: target[0].rpartition(".")[0])
    reads = (partial(_read, list(layer), source, world) for _, layer in layers)
    for tensors in in_order(reads):
        for tensor in tensors:
            _share(tensor, world)


@torch.no_grad()
def _read(
    layer: Sequence[tuple[str, torch.Tensor]], source: TensorSource, world: World
) -> list[torch.Tensor]:
    """Read the tensors of a layer that this rank reads; returns all of them."""
    group = world.host_group
    for name, target in layer:
        if isinstance(target, DTensor):
            rows = target.to_local()
            if rows.numel() > 0:
                begin = _rows_per_rank(target) * target.device_mesh.get_local_rank()
                read_into(rows, source, name, begin)
        elif group is None or dist.get_rank(group) == 0:
            read_into(target, source, name)
    return [target for _, target in layer]


@torch.no_grad()
def _share(tensor: torch.Tensor, world: World) -> None:
    """Send a whole tensor from the rank that has read it to the others of its host."""
    group = world.host_group
    if isinstance(tensor, DTensor) or group is None or dist.get_world_size(group) == 1:
        return
    # Not every backend knows float8: it is sent as bytes.
    broadcast(tensor.view(torch.uint8) if tensor.element_size() == 1 else tensor, 0, group)


def _rows_per_rank(parameter: DTensor) -> int:
    """Rows of a parameter that the first rank holds; the last ranks may hold fewer, or none."""
    ranks: int = parameter.device_mesh.size()
    return -(-parameter.shape[0] // ranks)
