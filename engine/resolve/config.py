"""Resolves an engine's configuration: fills in what "auto" stands for, and checks it."""

from __future__ import annotations

from typing import Any

from longtake.configs.engine import PARTS, EngineConfig
from longtake.engine.planning.layouts import check_degrees
from longtake.engine.planning.plan_input import check_storage
from longtake.errors import KernelError, RequestError, did_you_mean
from longtake.pipelines.loading.checkpoint import Checkpoint
from longtake.pipelines.spec import ModelSpec


def resolve_config(
    config: EngineConfig, checkpoint: Checkpoint, spec: ModelSpec, device_type: str
) -> EngineConfig:
    """Set everything but the degrees and the attention kernel, which depend on requests.

    Raises:
        LayoutError: The degrees do not fit the devices.
        KernelError: The attention kernel is unknown.
        RequestError: The folder of LoRAs does not exist, or the transformer's files cannot be
            stored as asked.
    """
    resolved: dict[str, Any] = {
        "revision": checkpoint.revision,
        "device": device_type,
        "dtype": config.compute_dtype(device_type),
        "vae_dtype": config.autoencoder_dtype(spec.defaults.vae_dtype, device_type),
    }
    paths = {name: getattr(config, name) for name in ("image_folder", "lora_folder", *PARTS)}
    for name, path in paths.items():
        if path is not None:
            resolved[name] = path.expanduser().absolute()
    config = config.model_copy(update=resolved)
    if not config.autoencoder_only:
        check_storage(config.storage_dtype, spec)
    if config.lora_folder is not None and not config.lora_folder.is_dir():
        raise RequestError(
            f"lora_folder={str(config.lora_folder)!r} is no folder: create it, or name one"
        )
    check_degrees(config.parallel, config.devices, num_heads=spec.num_heads)
    if config.attention_kernel != "auto":
        _check_kernel(config.attention_kernel)
    return config


def _check_kernel(name: str) -> None:
    from longtake.parallel.kernels.table import KERNELS  # imports torch

    kernels = ["auto", *(kernel.name for kernel in KERNELS)]
    if name not in kernels:
        known, hint = ", ".join(kernels), did_you_mean(name, kernels)
        raise KernelError(f"attention_kernel={name!r} is unknown: use {known}{hint}")
