"""A toy family of video models: its options, and where its parts are."""

from typing import Annotated

from pydantic import Field

from longtake.configs.families import FamilyOptions, ModelFamily

Share = Annotated[float, Field(ge=0, le=1)]


class ToyOptions(FamilyOptions):
    """Request fields that only this family has."""

    guidance_rescale: Share | None = Field(None, description="How far guidance keeps contrast")


FAMILY = ModelFamily(
    name="toy",
    pipeline_classes=("ToyPipeline",),
    options="longtake_toy:ToyOptions",
    inspect="longtake_toy.spec:inspect",
    pipeline="longtake_toy.pipeline:ToyPipeline",
    codec="longtake_toy.pipeline:ToyCodec",
    skeleton="longtake_toy.pipeline:skeleton",
    layouts="longtake_toy.layouts:LAYOUTS",
)
