"""What an engine is made of, with nothing left to be chosen, and checked."""

from __future__ import annotations

from typing import Any

import torch

from longtake.configs.engine import EngineConfig
from longtake.engine.planning.layouts import check_degrees
from longtake.engine.worker import dtype_of, vae_dtype_of
from longtake.errors import KernelError
from longtake.parallel.kernels import KERNELS
from longtake.pipelines.checkpoint import Checkpoint
from longtake.pipelines.spec import ModelSpec


def settled(
    config: EngineConfig, checkpoint: Checkpoint, spec: ModelSpec, device_type: str
) -> EngineConfig:
    """An engine's configuration with nothing left to be chosen but degrees and attention kernel.

    Raises:
        LayoutError: the degrees do not fit the devices.
        KernelError: an unknown attention kernel.
    """
    device = torch.device(device_type)
    used: dict[str, Any] = {
        "revision": checkpoint.revision,
        "device": device_type,
        "dtype": _name(dtype_of(config, device)),
        "vae_dtype": _name(vae_dtype_of(config, spec, device)),
    }
    if config.image_folder is not None:
        used["image_folder"] = config.image_folder.expanduser().absolute()
    config = config.model_copy(update=used)
    check_degrees(config.parallel, config.devices, num_heads=spec.num_heads)
    kernels = ["auto", *(kernel.name for kernel in KERNELS)]
    if config.attention_kernel not in kernels:
        raise KernelError(
            f"attention_kernel={config.attention_kernel!r} is unknown: use {', '.join(kernels)}"
        )
    return config


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
