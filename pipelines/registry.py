"""The model families, by the class of pipeline that a checkpoint names."""

from __future__ import annotations

from collections.abc import Callable

import torch

from longtake.errors import ModelError
from longtake.parallel import World
from longtake.pipelines.base import ModelSpec, VideoPipeline
from longtake.pipelines.checkpoint import Checkpoint
from longtake.pipelines.hunyuan_video import spec as hunyuan_video

_INSPECT = {"HunyuanVideoPipeline": hunyuan_video.inspect}


def inspect(checkpoint: Checkpoint) -> ModelSpec:
    """Check a model's files and say what requests it can serve; nothing is loaded.

    Raises:
        ModelError: no family can serve it, or it is damaged.
    """
    if checkpoint.pipeline_class not in _INSPECT:
        raise ModelError(
            f"{checkpoint.model} is a {checkpoint.pipeline_class}: longtake renders with "
            f"{', '.join(_INSPECT)}"
        )
    return _INSPECT[checkpoint.pipeline_class](checkpoint)


def load(
    checkpoint: Checkpoint,
    world: World,
    *,
    dtype: torch.dtype,
    kernel: str = "auto",
    shard_weights: bool = False,
    on_component: Callable[[str], None] = lambda name: None,
) -> VideoPipeline:
    """Load a model, on all ranks together.

    Args:
        dtype: of its weights and activations.
        kernel: name of the local attention kernel.
        shard_weights: split the transformer's weights over all ranks.
        on_component: called with the name of each component before it is loaded.

    Raises:
        ModelError: a component cannot be loaded.
    """
    defaults = inspect(checkpoint).defaults
    from longtake.pipelines.hunyuan_video.pipeline import HunyuanVideo  # imports diffusers: slow

    return HunyuanVideo(
        checkpoint,
        defaults,
        world,
        dtype=dtype,
        kernel=kernel,
        shard_weights=shard_weights,
        on_component=on_component,
    )
