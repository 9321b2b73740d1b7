"""Weights that rest in host memory while their module does not work."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn


class RestingWeights:
    """The weights of some modules: in host memory from now on, and on their device on request.

    Nothing is copied back to the host: weights do not change.

    Args:
        modules: Modules with their weights on one device.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._weights: list[tuple[torch.Tensor, torch.device, torch.Tensor]] = []
        for module in modules:
            for weights in (*module.parameters(), *module.buffers()):
                self._weights.append((weights, weights.device, weights.data.cpu()))
        self._rest()

    @contextmanager
    def on_device(self) -> Iterator[None]:
        """Have the weights on their device within the context."""
        try:
            for weights, device, resting in self._weights:
                weights.data = resting.to(device, copy=True)
            yield
        finally:
            self._rest()

    def _rest(self) -> None:
        for weights, _, resting in self._weights:
            weights.data = resting
