"""Request fields that only HunyuanVideo has."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from longtake.configs.families import FamilyOptions
from longtake.configs.field_types import Scale
from longtake.pipelines.prompt_tokens import PromptTemplate

I2vMode = Literal["stable", "dynamic"]


class TextToVideoOptions(FamilyOptions):
    """Options of HunyuanVideo text to video."""

    true_cfg_scale: Scale | None = Field(
        default=None,
        title="True CFG scale",
        description="Scale of classifier-free guidance, which above 1 computes a second, negative "
        "pass; 1 by default",
    )
    prompt_template: PromptTemplate | None = Field(
        default=None, description="Text that surrounds the prompt when it is encoded"
    )


class HunyuanVideoOptions(TextToVideoOptions):
    """Options of HunyuanVideo image to video, which are those of all HunyuanVideo models."""

    discards = {
        "i2v_mode": ("flow_shift",),
        "true_cfg_scale": ("cfg_degree", "ring_degree", "ulysses_degree"),
    }
    recorded = {
        "i2v_mode": ("image_sha256", None),
        "true_cfg_scale": ("guidance_scale", 1.0),
        "prompt_template": ("num_videos", None),
    }

    i2v_mode: I2vMode | None = Field(
        default=None,
        title="Image-to-video mode",
        description="Initial noise of image-to-video: mixed with some of the picture (stable, the "
        "default), or pure (dynamic: more motion, another flow shift)",
    )
