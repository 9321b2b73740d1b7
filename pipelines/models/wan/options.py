"""Request fields that only Wan has."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from longtake.configs.families import FamilyOptions
from longtake.configs.field_types import Scale

Sampler = Literal["unipc", "euler"]
SigmaSpacing = Literal["scheduler", "linear"]


class WanOptions(FamilyOptions):
    """Options of a Wan model with one transformer."""

    sampler: Sampler | None = Field(
        default=None,
        description="Sampler: UniPC of order 2, or Euler, which distilled LoRAs are made for; that "
        "of the model's scheduler by default",
    )
    sigma_spacing: SigmaSpacing | None = Field(
        default=None,
        description="Noise levels before the flow shift: as diffusers' scheduler spaces them "
        "(scheduler, the default), or evenly from 1 to 0 (linear), as distilled LoRAs expect",
    )


class WanExpertsOptions(WanOptions):
    """Options of a Wan model with two experts, which are those of all Wan models."""

    guidance_scale_2: Scale | None = Field(
        default=None,
        title="Guidance scale 2",
        description="Guidance scale of the steps that the low-noise expert runs; the guidance "
        "scale by default, if that is given",
    )
