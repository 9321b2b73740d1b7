"""Defaults of Wan models: the keys of their longtake.yaml."""

from __future__ import annotations

from longtake.configs.base import Dtype
from longtake.configs.field_types import (
    DecodeMode,
    Frames,
    Pixels,
    Rate,
    Scale,
    Steps,
    TextTokens,
)
from longtake.configs.models import ModelDefaults
from longtake.pipelines.models.wan.costs import TEXT_TOKENS
from longtake.pipelines.models.wan.options import WanExpertsOptions


class WanDefaults(ModelDefaults, WanExpertsOptions):
    """Unless a model has its own, the defaults of Wan in diffusers, and its frame rate."""

    height: Pixels = 480
    width: Pixels = 832
    num_frames: Frames = 81
    num_inference_steps: Steps = 50
    guidance_scale: Scale = 5.0
    fps: Rate = 16.0
    decode: DecodeMode = "whole"
    vae_dtype: Dtype | None = "float32"
    max_sequence_length: TextTokens = TEXT_TOKENS
