"""Loads a transformer to where the plan says that its weights live."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from longtake.configs.fields.weights import WeightStorage
from longtake.parallel import World
from longtake.pipelines.family import Denoiser
from longtake.pipelines.loading.loaded_weights import LoadedWeights
from longtake.pipelines.loading.plan import ComponentPlan
from longtake.pipelines.loading.tensor_source import TensorSource
from longtake.pipelines.loading.weights import load_weights, loaded_dtype, shard_module
from longtake.pipelines.lora.fused import FusedTransformer
from longtake.pipelines.lora.source import LoraSource
from longtake.pipelines.quantization.block_linear import block_linears
from longtake.pipelines.quantization.block_source import BlocksSource
from longtake.pipelines.quantization.linear import stored_dtypes, stored_linears
from longtake.pipelines.quantization.replacement import keep_blocks, store_in_fewer_bits
from longtake.pipelines.quantization.source import EncodingSource
from longtake.pipelines.streaming.layout import BlockLayout
from longtake.pipelines.streaming.stores import FileStore, HostStore
from longtake.pipelines.streaming.streamer import BlockStreamer


@dataclass(frozen=True)
class Weights:
    """What fills a module that was built on the ``meta`` device.

    Attributes:
        source: The module's parameters and persistent buffers, by their names in the module.
        float32: Pattern, searched in the names of ``source``, of those converted to float32.
        component: Component of the checkpoint that the source holds.
        buffers: Values of the buffers that no state dict holds, by their names in the module.
    """

    source: TensorSource
    float32: re.Pattern[str] | None = None
    buffers: Mapping[str, torch.Tensor] = field(default_factory=dict)
    component: str = "transformer"


def load_transformer(
    denoiser: Denoiser[Any],
    module: nn.Module,
    weights: Weights,
    world: World,
    plan: ComponentPlan,
    root: nn.Module | None = None,
) -> None:
    """Load a denoiser's transformer as planned. Collective: all ranks call it.

    The blocks of the denoiser are streamed or split one by one. With several experts, it is called
    for each. LoRAs can be fused into what it has loaded; see :attr:`Denoiser.transformers`.

    Args:
        denoiser: The denoiser, on ``meta``.
        module: Module of the denoiser, whose weights are loaded.
        weights: Its weights.
        world: All ranks.
        plan: Dtype, storage and place of the weights, and the LoRAs that are added to them.
        root: Module of the denoiser whose call runs the blocks of ``module``; by default the
            denoiser.

    Raises:
        ModelError: A tensor is missing, unexpected, of the wrong shape, or cannot be read; or a
            host has too little memory.
    """
    root = root or denoiser
    inside = set(root.modules())
    blocks = [block for chain in denoiser.chains for block in chain if block in inside]
    with_loras = LoraSource(weights.source, plan.loras.get(weights.component, {}))
    weights = replace(weights, source=with_loras)
    if plan.storage is not None:
        weights = replace(weights, source=_stored(module, blocks, weights.source, plan.storage))
    if plan.place == "split":
        shard_module(root, blocks, world)
    streamed = blocks if plan.place in ("streamed", "disk") else []
    named = [_names_in(module, block) for block in streamed]
    elsewhere = {name for names in named for name in names.values()}
    load_weights(
        module,
        weights.source,
        world,
        plan.dtype,
        float32=weights.float32,
        buffers=weights.buffers,
        elsewhere=elsewhere,
    )
    state = module.state_dict(keep_vars=True)
    here = {name: tensor for name, tensor in state.items() if name not in elsewhere}
    host = _stream(denoiser, streamed, named, weights, world, plan) if streamed else None
    loaded = LoadedWeights(weights.source, here, world, host)
    denoiser.transformers[weights.component] = FusedTransformer(with_loras, loaded)


def _stream(
    denoiser: Denoiser[Any],
    blocks: Sequence[nn.Module],
    named: Sequence[Mapping[str, str]],
    weights: Weights,
    world: World,
    plan: ComponentPlan,
) -> HostStore | None:
    """Stream blocks from host memory, which is returned, or from their files."""
    layouts = [
        _layout(block, names, weights, plan.dtype)
        for block, names in zip(blocks, named, strict=True)
    ]
    files = FileStore(layouts, weights.source, named)
    host = HostStore(files, world) if plan.place == "streamed" else None
    if not isinstance(denoiser.run_blocks.weights, BlockStreamer):
        denoiser.run_blocks.weights = BlockStreamer(world.device)
    denoiser.run_blocks.weights.add(blocks, host or files)
    return host


def _stored(
    module: nn.Module, blocks: Sequence[nn.Module], source: TensorSource, storage: WeightStorage
) -> TensorSource:
    """Replace layers of blocks by those that store their weights in fewer bits, and return the
    source that fills them."""
    if storage == "gguf":
        keep_blocks(module, blocks, source)
        return BlocksSource(source, block_linears(module))
    store_in_fewer_bits(blocks, storage)
    return EncodingSource(source, stored_linears(module))


def _names_in(module: nn.Module, block: nn.Module) -> dict[str, str]:
    """Name in a module of each tensor of one of its blocks, by its name in the block."""
    (prefix,) = (name for name, each in module.named_modules() if each is block)
    return {name: f"{prefix}.{name}" for name in block.state_dict()}


def _layout(
    block: nn.Module, names: Mapping[str, str], weights: Weights, dtype: torch.dtype
) -> BlockLayout:
    """The layout of a block's tensors in the dtypes that they are loaded in."""
    state, stored = block.state_dict(), stored_dtypes(block)
    return BlockLayout(
        {
            name: state[name].to(stored.get(name) or loaded_dtype(full, dtype, weights.float32))
            for name, full in names.items()
        }
    )
