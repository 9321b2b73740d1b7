"""Names and shapes of AutoencoderKLWan's weight tensors, from its configuration alone."""

from __future__ import annotations

from longtake.pipelines.loading.tensor_shapes import NamedShapes
from longtake.pipelines.models.wan.codec.config import VaeConfig
from longtake.pipelines.models.wan.codec.layers import decoder_layers, encoder_layers


def vae_tensors(config: VaeConfig) -> NamedShapes:
    """Tensors of AutoencoderKLWan, generated lazily."""
    for walk in (encoder_layers, decoder_layers):
        for layer in walk(config):
            channels_in, channels = layer.channels
            if layer.kind == "norm":
                yield f"{layer.name}.gamma", (channels, *layer.kernel)
            elif layer.name:
                yield f"{layer.name}.weight", (channels, channels_in, *layer.kernel)
                yield f"{layer.name}.bias", (channels,)
