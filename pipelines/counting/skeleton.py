"""A model without weights, whose work is counted."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from longtake.configs.request import ResolvedDecode
from longtake.pipelines.codec.tiles import TileCoder
from longtake.pipelines.family import Denoiser, Streams
from longtake.pipelines.spec import LatentGrid


@dataclass(frozen=True)
class Skeleton:
    """A model's modules on the meta device, and the inputs of one pass.

    Attributes:
        denoiser: The denoiser.
        streams: Conditioning of one pass with this many text tokens, for one video, on the meta
            device.
        autoencoder: The autoencoder, with its encoder.
        decoder: The tile coder that decodes with it.
        pictures: Latents of the pictures for a latent grid, on the meta device.
        text_encoders: The text and picture encoders, on the meta device; None if the family does
            not build them: their parameters are then read from the checkpoint.
        float32: Pattern, searched in the names of the denoiser's parameters, of those that are
            float32 in every dtype.
    """

    denoiser: Denoiser[Any]
    streams: Callable[[int], Streams]
    autoencoder: nn.Module
    decoder: Callable[[ResolvedDecode], TileCoder]
    pictures: Callable[[LatentGrid], Streams] = lambda grid: {}
    text_encoders: Sequence[nn.Module] | None = None
    float32: re.Pattern[str] | None = None
