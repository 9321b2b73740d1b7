"""HunyuanVideo as a model family: where its parts are."""

from __future__ import annotations

from longtake.configs.families import ModelFamily

_FOLDER = "longtake.pipelines.models.hunyuan_video"

FAMILY = ModelFamily(
    name="hunyuan_video",
    title="HunyuanVideo",
    pipeline_classes=("HunyuanVideoPipeline", "HunyuanVideoImageToVideoPipeline"),
    options=f"{_FOLDER}.options:HunyuanVideoOptions",
    inspect=f"{_FOLDER}.spec:inspect",
    pipeline=f"{_FOLDER}.loading:load_pipeline",
    codec=f"{_FOLDER}.loading:load_codec",
    layouts=f"{_FOLDER}.layouts:LAYOUTS",
    folders=f"{_FOLDER}.layouts.folders:FOLDERS",
)
