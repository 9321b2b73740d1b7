"""How a model is loaded."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class LoadOptions:
    """How a model is loaded; the same on all ranks.

    Attributes:
        dtype: Dtype of the transformer and the text encoders.
        vae_dtype: Dtype of the autoencoder; None is ``dtype``.
        kernel: Name of the local attention kernel.
        shard_weights: Whether to shard the transformer's weights over all ranks.
    """

    dtype: torch.dtype
    vae_dtype: torch.dtype | None = None
    kernel: str = "auto"
    shard_weights: bool = False

    @property
    def autoencoder_dtype(self) -> torch.dtype:
        """The dtype of the autoencoder."""
        return self.vae_dtype or self.dtype
