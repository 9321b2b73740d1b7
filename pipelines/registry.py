"""Selects the model family of a checkpoint, by its pipeline class."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from longtake.errors import ModelError
from longtake.imports import garbage_collection_paused
from longtake.pipelines.counting.costs import with_costs
from longtake.pipelines.loading.checkpoint import Checkpoint
from longtake.pipelines.spec import ModelSpec

if TYPE_CHECKING:
    from longtake.parallel import World
    from longtake.pipelines.base import LoadOptions
    from longtake.pipelines.family import VideoCodec, VideoPipeline


@dataclass(frozen=True)
class _Family:
    """The implementation of one pipeline class.

    Its modules are imported on first use: nothing here depends on a family, and diffusers is slow
    to import.

    Attributes:
        folder: The family's package.
        inspect: Name of the function in its ``spec`` that builds the ModelSpec from a checkpoint's
            files, without loading weights.
        module: Name of the module of the VideoPipeline subclass.
        pipeline: Name of the VideoPipeline subclass.
        codec_module: Name of the module of the VideoCodec subclass.
        codec: Name of the VideoCodec subclass.
        skeleton: ``module:function`` that builds the model without weights, for a family whose
            specifications have no costs; see :class:`~.counting.costs.CountedCosts`.
    """

    folder: str
    inspect: str
    module: str
    pipeline: str
    codec_module: str
    codec: str
    skeleton: str = ""

    def inspect_checkpoint(
        self, checkpoint: Checkpoint, *, weights: bool, autoencoder_only: bool = False
    ) -> ModelSpec:
        """The ModelSpec of a checkpoint; see :func:`inspect`."""
        module = importlib.import_module(f"{self.folder}.spec")
        spec: ModelSpec = getattr(module, self.inspect)(
            checkpoint, weights=weights, autoencoder_only=autoencoder_only
        )
        return with_costs(spec, checkpoint, self.skeleton)

    def pipeline_class(self) -> Callable[..., VideoPipeline]:
        """The VideoPipeline subclass."""
        with garbage_collection_paused():
            module = importlib.import_module(f"{self.folder}.{self.module}")
        found: Callable[..., VideoPipeline] = getattr(module, self.pipeline)
        return found

    def codec_class(self) -> Callable[..., VideoCodec]:
        """The VideoCodec subclass."""
        with garbage_collection_paused():
            module = importlib.import_module(f"{self.folder}.{self.codec_module}")
        found: Callable[..., VideoCodec] = getattr(module, self.codec)
        return found


_HUNYUAN_VIDEO = "longtake.pipelines.models.hunyuan_video"
_HUNYUAN_VIDEO_CODEC = "codec.autoencoder", "HunyuanVideoCodec"
_FAMILIES = {
    "HunyuanVideoPipeline": _Family(
        _HUNYUAN_VIDEO, "inspect", "pipeline", "HunyuanVideo", *_HUNYUAN_VIDEO_CODEC
    ),
    "HunyuanVideoImageToVideoPipeline": _Family(
        _HUNYUAN_VIDEO,
        "inspect_image_to_video",
        "image_to_video",
        "HunyuanVideoImageToVideo",
        *_HUNYUAN_VIDEO_CODEC,
    ),
}


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
    return _family(checkpoint).inspect_checkpoint(
        checkpoint, weights=weights, autoencoder_only=autoencoder_only
    )


def load(
    checkpoint: Checkpoint,
    world: World,
    options: LoadOptions,
    on_component: Callable[[str], None] = lambda name: None,
) -> VideoPipeline:
    """Load a model. Collective: all ranks call it.

    Args:
        checkpoint: The model's files.
        world: The ranks.
        options: Dtypes, attention kernel, and what to load.
        on_component: Called with the name of each component before it is loaded.

    Raises:
        ModelError: A component cannot be loaded.
    """
    family = _family(checkpoint)
    spec = family.inspect_checkpoint(checkpoint, weights=False)
    on_component("vae")
    codec = load_codec(checkpoint, world, options)
    return family.pipeline_class()(checkpoint, spec, codec, world, options, on_component)


def load_codec(checkpoint: Checkpoint, world: World, options: LoadOptions) -> VideoCodec:
    """Load a model's autoencoder alone, which suffices for decoding. Collective.

    Args:
        checkpoint: The model's files.
        world: The ranks.
        options: The dtype of the autoencoder.

    Raises:
        ModelError: It cannot be loaded.
    """
    return _family(checkpoint).codec_class()(checkpoint, world, options.autoencoder_dtype)


def _family(checkpoint: Checkpoint) -> _Family:
    if checkpoint.pipeline_class not in _FAMILIES:
        raise ModelError(
            f"{checkpoint.model} is a {checkpoint.pipeline_class}: longtake renders with "
            f"{', '.join(_FAMILIES)}"
        )
    return _FAMILIES[checkpoint.pipeline_class]
