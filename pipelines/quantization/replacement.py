"""Puts linear layers that are stored in fewer bits into a denoiser."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from longtake.configs.weights import StorageDtype
from longtake.errors import ModelError
from longtake.pipelines.family import Denoiser
from longtake.pipelines.quantization.linear import StoredLinear


def store_in_fewer_bits(denoiser: Denoiser[Any], storage: StorageDtype | None) -> None:
    """Replace all linear layers in a denoiser's blocks by :class:`StoredLinear`.

    Layers outside of blocks are few, and see the latents or the noise level itself: they stay.

    Args:
        denoiser: A denoiser on the ``meta`` device.
        storage: Type that their weights are stored in; None replaces nothing.
    """
    if storage is None:
        return
    found = list(_linears(denoiser))
    stored = {linear: StoredLinear(linear, storage) for _, _, linear in found}
    for parent, name, linear in found:  # modules may share a layer
        setattr(parent, name, stored[linear])


def check_stored(denoiser: Denoiser[Any], storage: StorageDtype | None, family: str) -> None:
    """Check that a family has loaded its denoiser in fewer bits, if that was asked for.

    Raises:
        ModelError: A linear layer in a block is stored in the compute dtype.
    """
    if storage is not None and (left := next(_linears(denoiser), None)) is not None:
        raise ModelError(
            f"storage_dtype={storage}: the model family {family} leaves {left[1]} of a block in "
            "the compute dtype: it must call store_in_fewer_bits before it loads weights"
        )


def _linears(denoiser: Denoiser[Any]) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    """The linear layers in the blocks, each with the module that it is in and its name there."""
    for chain in denoiser.chains:
        for block in chain:
            for parent in block.modules():
                for name, child in parent.named_children():
                    if type(child) is nn.Linear:
                        yield parent, name, child
