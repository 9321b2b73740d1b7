"""Defaults of HunyuanVideo models: the keys of their longtake.yaml."""

from __future__ import annotations

from pydantic import Field

from longtake.configs.field_types import Frames, Pixels, Rate, Scale, Shift, Steps, TextTokens
from longtake.configs.models import ModelDefaults
from longtake.pipelines.models.hunyuan_video.options import HunyuanVideoOptions, I2vMode


class HunyuanVideoDefaults(ModelDefaults, HunyuanVideoOptions):
    """Unless a model has its own, the defaults of HunyuanVideo in diffusers."""

    height: Pixels = 720
    width: Pixels = 1280
    num_frames: Frames = 129
    num_inference_steps: Steps = 50
    guidance_scale: Scale = 6.0
    true_cfg_scale: Scale = 1.0
    fps: Rate = 24.0
    max_sequence_length: TextTokens = 256
    i2v_mode: I2vMode = "stable"
    dynamic_flow_shift: Shift = Field(
        default=17.0, description="Flow shift of the dynamic mode of image-to-video"
    )
