"""The dtypes that an engine runs in, by name. Imports no torch."""

from __future__ import annotations

from longtake.configs.base import Dtype
from longtake.configs.engine import EngineConfig


def compute_dtype_name(config: EngineConfig, device_type: str) -> Dtype:
    """The dtype of weights and activations: the configured one, else the device's default.

    Args:
        config: The engine's configuration.
        device_type: "cuda" or "cpu".
    """
    if config.dtype != "auto":
        return config.dtype
    return "bfloat16" if device_type == "cuda" else "float32"


def vae_dtype_name(config: EngineConfig, model_dtype: Dtype | None, device_type: str) -> Dtype:
    """The dtype of the autoencoder: the configured one, else the model's, else the compute dtype.

    Args:
        config: The engine's configuration.
        model_dtype: The dtype that the model names for its autoencoder, if it does.
        device_type: "cuda" or "cpu".
    """
    if config.vae_dtype != "auto":
        return config.vae_dtype
    return model_dtype or compute_dtype_name(config, device_type)
