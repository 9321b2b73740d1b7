"""Puts linear layers that are stored in fewer bits into the blocks of a denoiser."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn

from longtake.configs.fields.weights import StorageDtype, WeightStorage
from longtake.errors import ModelError
from longtake.pipelines.family import Denoiser
from longtake.pipelines.loading.tensor_source import TensorSource, block_types
from longtake.pipelines.quantization.block_linear import BlockLinear
from longtake.pipelines.quantization.linear import WEIGHT, StoredLinear


def linears_in(blocks: Iterable[nn.Module]) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    """The linear layers in blocks, each with the module that it is in and its name there."""
    for block in blocks:
        for parent in block.modules():
            for name, child in parent.named_children():
                if type(child) is nn.Linear:
                    yield parent, name, child


def store_in_fewer_bits(blocks: Iterable[nn.Module], storage: StorageDtype) -> None:
    """Replace all linear layers of blocks by :class:`StoredLinear`, those of modulation too.

    Layers outside of blocks are few, and see the latents or the noise level itself: they stay.

    Args:
        blocks: Blocks on the ``meta`` device.
        storage: Type that their weights are stored in.
    """
    found = list(linears_in(blocks))
    stored = {linear: StoredLinear(linear, storage) for _, _, linear in found}
    for parent, name, linear in found:  # modules may share a layer
        setattr(parent, name, stored[linear])


def keep_blocks(module: nn.Module, blocks: Iterable[nn.Module], source: TensorSource) -> None:
    """Replace the linear layers of transformer blocks whose weights a source has in GGUF blocks.

    Args:
        module: The module whose names the source has, on the ``meta`` device.
        blocks: Its transformer blocks.
        source: The source of its weights.

    Raises:
        ModelError: There are none.
    """
    types = block_types(source)
    names = {each: name for name, each in module.named_modules()}
    replaced: dict[nn.Linear, BlockLinear] = {}
    for parent, name, linear in list(linears_in(blocks)):  # modules may share a layer
        block_type = types.get(f"{names[linear]}.{WEIGHT}")
        if block_type is not None:
            layer = replaced.setdefault(linear, BlockLinear(linear, block_type))
            setattr(parent, name, layer)
    if not replaced:
        raise ModelError(
            f"storage_dtype=gguf: {source.label} holds no weights of a transformer's blocks in "
            "blocks of GGUF: name a .gguf file as transformer, or leave storage_dtype out"
        )


def check_stored(denoiser: Denoiser[Any], storage: WeightStorage | None, family: str) -> None:
    """Check that a family has loaded its denoiser in fewer bits, if that was asked for.

    Raises:
        ModelError: A linear layer in a block is stored in the dtype of compute.
    """
    if storage is None or storage == "gguf":  # whose files may hold any layer in plain
        return
    for _, name, _ in linears_in(itertools.chain.from_iterable(denoiser.chains)):
        raise ModelError(
            f"storage_dtype={storage}: the model family {family} stores {name} of a block in the "
            "dtype of compute: it must load its transformer with load_transformer"
        )
