"""Wan as a model family: where its parts are."""

from __future__ import annotations

from longtake.configs.families import ModelFamily

_FOLDER = "longtake.pipelines.models.wan"

FAMILY = ModelFamily(
    name="wan",
    title="Wan",
    pipeline_classes=("WanPipeline", "WanImageToVideoPipeline"),
    options=f"{_FOLDER}.options:WanExpertsOptions",
    inspect=f"{_FOLDER}.inspection:inspect",
    pipeline=f"{_FOLDER}.pipeline:WanVideo",
    codec=f"{_FOLDER}.codec.codec:load_codec",
    layouts=f"{_FOLDER}.layouts:LAYOUTS",
    folders=f"{_FOLDER}.layouts.folders:FOLDERS",
)
