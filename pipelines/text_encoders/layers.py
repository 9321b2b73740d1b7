"""The layers of a text encoder, and its token embedding."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn


def layers_of(encoder: nn.Module) -> Iterator[nn.Module]:
    """The layers of an encoder, and of the vision encoder in it: the modules in its lists.

    Their order is that in which they are defined, and run.
    """
    for module in encoder.children():
        if isinstance(module, nn.ModuleList):
            yield from module
        else:
            yield from layers_of(module)


def token_embeddings(encoder: Any) -> Iterator[tuple[nn.Module, str]]:
    """Where the encoder has its token embedding: modules, and the names of their attribute.

    Several are tied to one another. None if it is tied to other modules, or does more than to look
    rows up, or if the encoder takes no tokens.

    Args:
        encoder: An encoder of transformers.
    """
    embedding = encoder.get_input_embeddings()
    if not _only_looks_up(embedding):
        return
    parents = [
        (parent, name, child)
        for parent in encoder.modules()
        for name, child in parent.named_children()
        if any(each is embedding.weight for each in child.parameters(recurse=False))
    ]
    if all(_only_looks_up(child) for _, _, child in parents):
        yield from ((parent, name) for parent, name, _ in parents)


def streaming_parameters(encoder: Any) -> int:
    """Parameters on the device while an encoder's layers are brought there one by one.

    They are two of the largest layer, and those outside of layers, except the token embedding.

    Args:
        encoder: An encoder of transformers, on any device.
    """
    layers = [num_parameters(layer) for layer in layers_of(encoder)]
    places = list(token_embeddings(encoder))
    rows = sum(num_parameters(getattr(parent, name)) for parent, name in places[:1])
    return num_parameters(encoder) - sum(layers) - rows + 2 * max(layers, default=0)


def num_parameters(module: nn.Module) -> int:
    """Number of a module's parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def _only_looks_up(module: nn.Module) -> bool:
    """Whether a module is torch's embedding, which returns rows of its weight as they are."""
    return type(module) is nn.Embedding and module.max_norm is None
