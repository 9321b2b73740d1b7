"""Loads Wan's transformers."""

from __future__ import annotations

from collections.abc import Callable

from diffusers import WanTransformer3DModel

from longtake.parallel import World
from longtake.pipelines.loading.build import build_module
from longtake.pipelines.loading.checkpoint import Checkpoint
from longtake.pipelines.loading.plan import LoadPlan
from longtake.pipelines.loading.tensor_source import UsedTensors
from longtake.pipelines.loading.transformer import Weights, load_transformer
from longtake.pipelines.models.wan.spec import WanSpec
from longtake.pipelines.models.wan.tensors import FLOAT32_WEIGHTS, UNUSED
from longtake.pipelines.models.wan.transformer.denoiser import WanDenoiser
from longtake.pipelines.models.wan.transformer.rope import rope_buffers


def load_denoiser(
    checkpoint: Checkpoint,
    spec: WanSpec,
    world: World,
    plan: LoadPlan,
    on_component: Callable[[str], None],
) -> WanDenoiser:
    """Load one transformer or two experts. Collective: all ranks call it.

    Raises:
        ModelError: A transformer cannot be loaded, or its weights belong to another model.
    """
    transformers = {
        name: build_module(WanTransformer3DModel, checkpoint.config(name), name)
        for name in spec.transformers
    }
    denoiser = WanDenoiser(transformers, spec.boundary, plan.kernel)
    for name in spec.transformers:
        on_component(name)
        transformer, expert = transformers[name], denoiser.expert(name)
        weights = Weights(
            UsedTensors(checkpoint.source(name), UNUSED),
            FLOAT32_WEIGHTS,
            rope_buffers(transformer.rope),
            name,
        )
        load_transformer(denoiser, transformer, weights, world, plan.transformer, expert)
    denoiser.chunk_feed_forwards()
    return denoiser
