"""Selects the model family of a checkpoint, by its pipeline class."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from longtake.configs.families import ModelFamily, installed_families, load_reference
from longtake.errors import ModelError
from longtake.imports import garbage_collection_paused
from longtake.pipelines.checkpoints.recognition import EXPERTS
from longtake.pipelines.loading.checkpoint import Checkpoint
from longtake.pipelines.spec import ModelSpec

if TYPE_CHECKING:
    from longtake.parallel import World
    from longtake.pipelines.family import VideoCodec, VideoPipeline
    from longtake.pipelines.loading.plan import LoadPlan


def inspect(
    checkpoint: Checkpoint, *, weights: bool = True, autoencoder_only: bool = False
) -> ModelSpec:
    """Check a model's files and return its specification, without loading weights.

    Args:
        checkpoint: The model's files.
        weights: Whether to check the weights, too. Those of a hub model are downloaded.
        autoencoder_only: Whether to check the weights of the autoencoder only.

    Raises:
        ModelError: The pipeline class is not supported, or a file is missing or damaged.
    """
    family = family_of(checkpoint)
    spec: ModelSpec = load_reference(family.inspect)(
        checkpoint, weights=weights, autoencoder_only=autoencoder_only
    )
    spec = replace(
        spec,
        model=checkpoint.model,
        family=family.label,
        gguf_value_bytes=_gguf_value_bytes(checkpoint),
    )
    if spec.costs is not None:
        return spec
    from longtake.pipelines.counting.costs import with_costs  # planning of most models needs none

    return with_costs(spec, checkpoint, family.skeleton)


def family_of(checkpoint: Checkpoint) -> ModelFamily:
    """The installed family that renders a checkpoint's pipeline class.

    Raises:
        ModelError: The pipeline class is not supported.
    """
    families = {
        name: family for family in installed_families().values() for name in family.pipeline_classes
    }
    if not families:
        raise ModelError(
            "no model family is installed, not even longtake's own: install longtake again, with "
            "make env in a clone"
        )
    if checkpoint.pipeline_class not in families:
        raise ModelError(
            f"{checkpoint.model} is a {checkpoint.pipeline_class}: longtake renders with "
            f"{', '.join(families)}"
        )
    return families[checkpoint.pipeline_class]


def package_version(checkpoint: Checkpoint) -> dict[str, str]:
    """Version of the package of a checkpoint's family, by name; empty for longtake's own families.

    Raises:
        ModelError: The pipeline class is not supported.
    """
    package = family_of(checkpoint).package
    return {} if package is None else dict([package])


def load(
    checkpoint: Checkpoint,
    world: World,
    plan: LoadPlan,
    on_component: Callable[[str], None] = lambda name: None,
) -> VideoPipeline:
    """Load a model. Collective: all ranks call it.

    Args:
        checkpoint: The model's files.
        world: The ranks.
        plan: How the components are loaded, and the attention kernel.
        on_component: Called with the name of each component before it is loaded.

    Raises:
        ModelError: A component cannot be loaded.
    """
    from longtake.pipelines.quantization.replacement import check_stored  # imports torch

    spec = inspect(checkpoint, weights=False)
    on_component("vae")
    codec = load_codec(checkpoint, spec, world, plan)
    with garbage_collection_paused():
        load_family = load_reference(family_of(checkpoint).pipeline)
    pipeline: VideoPipeline = load_family(checkpoint, spec, codec, world, plan, on_component)
    check_stored(pipeline.denoiser, plan.transformer.storage, spec.family)
    return pipeline


def load_codec(checkpoint: Checkpoint, spec: ModelSpec, world: World, plan: LoadPlan) -> VideoCodec:
    """Load a model's autoencoder alone, which suffices for decoding. Collective.

    Args:
        checkpoint: The model's files.
        spec: The model's specification.
        world: The ranks.
        plan: Dtype of the autoencoder.

    Raises:
        ModelError: It cannot be loaded.
    """
    with garbage_collection_paused():
        load_family = load_reference(family_of(checkpoint).codec)
    codec: VideoCodec = load_family(checkpoint, spec, world, plan)
    return codec


def _gguf_value_bytes(checkpoint: Checkpoint) -> float:
    """Mean bytes of a value of the transformers in GGUF files of fewer bits; 0 unless all are."""
    names = [name for name in EXPERTS if checkpoint.has_component(name)]
    parts = [checkpoint.parts[name].headers for name in names if name in checkpoint.parts]
    if len(parts) < len(names) or not all(part.has_blocks for part in parts):
        return 0.0
    stored = [each for part in parts for _, each in part.stored.values()]
    num_bytes = sum(each.offsets[1] - each.offsets[0] for each in stored)
    return num_bytes / max(1, sum(math.prod(each.shape) for each in stored))
