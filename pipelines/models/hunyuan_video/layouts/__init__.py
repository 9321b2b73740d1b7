"""Layouts in which HunyuanVideo's components come; without torch."""

from __future__ import annotations

from longtake.pipelines.models.hunyuan_video.layouts import (
    autoencoder,
    llama_cpp,
    text_encoders,
    transformer,
)

LAYOUTS = (
    *transformer.LAYOUTS,
    *autoencoder.LAYOUTS,
    *text_encoders.LAYOUTS,
    *llama_cpp.LAYOUTS,
)
