"""Where a text encoder is while it encodes, and at all other times."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from longtake.pipelines.streaming.streamer import BlockStreamer


class Encoder(Protocol):
    """An encoder of transformers, which is on the device only while it encodes."""

    @property
    def module(self) -> Any:
        """The encoder; called within :meth:`on_device`, with tensors on the device."""

    def on_device(self) -> AbstractContextManager[None]:
        """Hold what the encoder needs on the device within the context."""


@dataclass(frozen=True)
class ResidentEncoder:
    """An encoder that is whole on the device while it encodes, and in host memory otherwise.

    Args:
        module: The encoder, in host memory.
        device: Device that encodes.
    """

    module: Any
    device: torch.device

    @contextmanager
    def on_device(self) -> Iterator[None]:
        """Hold the encoder on the device within the context."""
        self.module.to(self.device)
        try:
            yield
        finally:
            if self.device.type != "cpu":
                self.module.to("cpu")


class StreamedEncoder:
    """An encoder whose layers are brought to the device one by one while it encodes.

    The next layer is on its way while one computes. What is outside of layers is on the device
    while it encodes, and in host memory otherwise.

    Args:
        module: The encoder, in host memory except for its layers.
        layers: Its layers, in the order in which they run.
        streamer: Brings the layers.
        device: Device that encodes.
    """

    def __init__(
        self,
        module: Any,
        layers: Sequence[nn.Module],
        streamer: BlockStreamer,
        device: torch.device,
    ) -> None:
        self.module, self._device = module, device
        self._layers, self._streamer = layers, streamer
        self._next = dict(zip(layers, layers[1:], strict=False))
        self._running: nn.Module | None = None
        for layer in layers:
            layer.register_forward_pre_hook(self._before)
            layer.register_forward_hook(self._after, always_call=True)
        streamed = {
            id(each) for layer in layers for each in layer.state_dict(keep_vars=True).values()
        }
        tensors = [*module.parameters(), *module.buffers()]
        self._outside = [tensor for tensor in tensors if id(tensor) not in streamed]

    @contextmanager
    def on_device(self) -> Iterator[None]:
        """Hold what is outside of layers on the device within the context, and two layers.

        Raises:
            EngineError: While the encoder is called: weights cannot be read any more.
        """
        self._streamer.prefetch(self._layers[0])
        on_host = [tensor.data for tensor in self._outside]
        try:
            for tensor in self._outside:
                tensor.data = tensor.data.to(self._device)
            yield
        finally:
            for tensor, values in zip(self._outside, on_host, strict=True):
                tensor.data = values
            self._release()
            self._streamer.free()

    def _before(self, layer: nn.Module, args: Any) -> None:
        """Called before a layer computes."""
        self._streamer.acquire(layer)
        self._running = layer
        if layer in self._next:
            self._streamer.prefetch(self._next[layer])

    def _after(self, layer: nn.Module, args: Any, output: Any) -> None:
        """Called after a layer has computed, or failed, or could not be read."""
        self._release()

    def _release(self) -> None:
        if self._running is not None:
            self._streamer.release(self._running)
            self._running = None


@contextmanager
def on_device(encoders: Sequence[Encoder]) -> Iterator[None]:
    """Hold several encoders on their device within the context; see :meth:`Encoder.on_device`."""
    with ExitStack() as stack:
        for encoder in encoders:
            stack.enter_context(encoder.on_device())
        yield
