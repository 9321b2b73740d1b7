"""Loads a HunyuanVideo on one rank."""

from __future__ import annotations

from collections.abc import Callable

from longtake.parallel import World
from longtake.pipelines.loading.checkpoint import Checkpoint
from longtake.pipelines.loading.plan import LoadPlan
from longtake.pipelines.models.hunyuan_video.codec.autoencoder import HunyuanVideoCodec
from longtake.pipelines.models.hunyuan_video.image_to_video import HunyuanVideoImageToVideo
from longtake.pipelines.models.hunyuan_video.pipeline import HunyuanVideo
from longtake.pipelines.spec import ModelSpec


def load_pipeline(
    checkpoint: Checkpoint,
    spec: ModelSpec,
    codec: HunyuanVideoCodec,
    world: World,
    plan: LoadPlan,
    on_component: Callable[[str], None],
) -> HunyuanVideo:
    """Load text to video or image to video, as the specification says. Collective.

    Raises:
        ModelError: A component cannot be loaded.
    """
    kind = HunyuanVideoImageToVideo if spec.pictures else HunyuanVideo
    return kind(checkpoint, spec, codec, world, plan, on_component)


def load_codec(
    checkpoint: Checkpoint, spec: ModelSpec, world: World, plan: LoadPlan
) -> HunyuanVideoCodec:
    """Load the autoencoder. Collective.

    Raises:
        ModelError: It cannot be loaded.
    """
    return HunyuanVideoCodec(checkpoint, world, plan.autoencoder.dtype)
