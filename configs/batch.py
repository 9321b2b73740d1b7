"""How a file of shots is rendered."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from longtake.configs.base import StrictModel

Attempts = Annotated[int, Field(ge=1, le=1000)]


class BatchConfig(StrictModel):
    """What a batch takes beside what a rendering takes."""

    replicas: Annotated[int, Field(ge=1, le=1024)] = Field(
        default=1, description="Groups of devices that render shots side by side"
    )
    attempts: Attempts = Field(
        default=5, description="Faults of one shot in a row, with no step gained, that set it aside"
    )
    retry_failed: bool = Field(default=False, description="Render again what failed earlier")
    dry_run: bool = Field(
        default=False, description="Check the shots, say how long they will take, and stop there"
    )
    watch: bool = Field(
        default=False, description="Go on when all is done, and render rows that are added"
    )
