"""Loads Wan's transformers, and decides where the expert that does not run rests."""

from __future__ import annotations

from collections.abc import Callable

from diffusers import WanTransformer3DModel

from longtake.parallel import World
from longtake.pipelines.loading.build import build_module
from longtake.pipelines.loading.checkpoint import Checkpoint
from longtake.pipelines.loading.plan import LoadPlan
from longtake.pipelines.loading.tensor_source import SafetensorsSource, UsedTensors
from longtake.pipelines.loading.transformer import Weights, load_transformer
from longtake.pipelines.models.wan.spec import WanSpec
from longtake.pipelines.models.wan.tensors import FLOAT32_WEIGHTS, UNUSED
from longtake.pipelines.models.wan.transformer.denoiser import HIGH_NOISE, LOW_NOISE, WanDenoiser
from longtake.pipelines.models.wan.transformer.placement import ExpertSwap, both_fit
from longtake.pipelines.models.wan.transformer.rope import rope_buffers


def load_denoiser(
    checkpoint: Checkpoint,
    spec: WanSpec,
    world: World,
    plan: LoadPlan,
    on_component: Callable[[str], None],
) -> WanDenoiser:
    """Load one transformer or two experts. Collective: all ranks call it.

    Two resident experts that do not both fit on a GPU take turns there: the one that rests is in
    host memory.

    Raises:
        ModelError: A transformer cannot be loaded, or its weights belong to another model.
    """
    transformers = {
        name: build_module(WanTransformer3DModel, checkpoint.config(name), name)
        for name in spec.transformers
    }
    denoiser = WanDenoiser(transformers, spec.boundary, plan.kernel)
    place = plan.transformer.place
    resident = place == "resident" or (place == "split" and world.size == 1)
    num_bytes = spec.costs.transformer_bytes(
        plan.transformer.dtype.itemsize, storage=plan.transformer.storage
    )
    swaps = len(transformers) > 1 and resident and not both_fit(num_bytes, world.device)
    for name in reversed(spec.transformers):  # the expert of the first steps comes last
        on_component(name)
        transformer, expert = transformers[name], denoiser.expert(name)
        weights = Weights(
            UsedTensors(SafetensorsSource(checkpoint.weights(name)), UNUSED),
            FLOAT32_WEIGHTS,
            rope_buffers(transformer.rope),
        )
        load_transformer(denoiser, transformer, weights, world, plan.transformer, expert)
        if swaps and name == LOW_NOISE:
            low, high = denoiser.expert(LOW_NOISE), denoiser.expert(HIGH_NOISE)
            denoiser.swap = ExpertSwap(low, high, world.device)
    denoiser.chunk_feed_forwards()
    return denoiser
