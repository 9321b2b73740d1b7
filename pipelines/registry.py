"""The model families, by the class of pipeline that a checkpoint names."""

from __future__ import annotations

import gc
import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING

from longtake.errors import ModelError
from longtake.pipelines.checkpoint import Checkpoint
from longtake.pipelines.hunyuan_video import spec as hunyuan_video
from longtake.pipelines.spec import ModelSpec

if TYPE_CHECKING:
    import torch

    from longtake.parallel import World
    from longtake.pipelines.base import VideoPipeline


@dataclass(frozen=True)
class _Family:
    """What renders the checkpoints of one pipeline class.

    Attributes:
        inspect: reads configuration files alone.
        module, pipeline: where its VideoPipeline is; imported on need, since diffusers is slow.
    """

    inspect: Callable[..., ModelSpec]
    module: str
    pipeline: str


_FAMILIES = {
    "HunyuanVideoPipeline": _Family(
        hunyuan_video.inspect, "longtake.pipelines.hunyuan_video.pipeline", "HunyuanVideo"
    ),
    "HunyuanVideoImageToVideoPipeline": _Family(
        hunyuan_video.inspect_image_to_video,
        "longtake.pipelines.hunyuan_video.image_to_video",
        "HunyuanVideoImageToVideo",
    ),
}


def inspect(
    checkpoint: Checkpoint, *, weights: bool = True, autoencoder_only: bool = False
) -> ModelSpec:
    """Check a model's files and say what requests it can serve; nothing is loaded.

    Args:
        weights: whether it must have weights, too, not configuration files alone. Those of a
            model from the hub are downloaded.
        autoencoder_only: of its weights, those of what decodes are enough.

    Raises:
        ModelError: no family can serve it, or it is damaged.
    """
    return _family(checkpoint).inspect(
        checkpoint, weights=weights, autoencoder_only=autoencoder_only
    )


def load(
    checkpoint: Checkpoint,
    world: World,
    *,
    dtype: torch.dtype,
    vae_dtype: torch.dtype | None = None,
    kernel: str = "auto",
    shard_weights: bool = False,
    autoencoder_only: bool = False,
    on_component: Callable[[str], None] = lambda name: None,
) -> VideoPipeline:
    """Load a model, on all ranks together.

    Args:
        dtype: of its weights and activations.
        vae_dtype: of its autoencoder; None is ``dtype``.
        kernel: name of the local attention kernel.
        shard_weights: split the transformer's weights over all ranks.
        autoencoder_only: load nothing but what decodes.
        on_component: called with the name of each component before it is loaded.

    Raises:
        ModelError: a component cannot be loaded.
    """
    family = _family(checkpoint)
    load_family = getattr(_import(family.module), family.pipeline)
    pipeline: VideoPipeline = load_family(
        checkpoint,
        family.inspect(checkpoint, weights=False),
        world,
        dtype=dtype,
        vae_dtype=vae_dtype or dtype,
        kernel=kernel,
        shard_weights=shard_weights,
        autoencoder_only=autoencoder_only,
        on_component=on_component,
    )
    return pipeline


def _import(name: str) -> ModuleType:
    """Import a family's module, without garbage collections.

    diffusers and transformers create about a million objects that live as long as the process.
    Scanning them again and again took a quarter of a rank's start. A frozen object is still
    freed by its reference count.
    """
    if name in sys.modules or not gc.isenabled():
        return importlib.import_module(name)
    gc.disable()
    try:
        module = importlib.import_module(name)
        gc.freeze()
        return module
    finally:
        gc.enable()


def _family(checkpoint: Checkpoint) -> _Family:
    if checkpoint.pipeline_class not in _FAMILIES:
        raise ModelError(
            f"{checkpoint.model} is a {checkpoint.pipeline_class}: longtake renders with "
            f"{', '.join(_FAMILIES)}"
        )
    return _FAMILIES[checkpoint.pipeline_class]
