"""Options of batch rendering."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from longtake.configs.base import StrictModel

Attempts = Annotated[int, Field(ge=1, le=1000)]


class BatchConfig(StrictModel):
    """Options of a batch, on top of those of a rendering."""

    replicas: Annotated[int, Field(ge=1, le=1024)] = Field(
        default=1, description="Groups of devices that render shots in parallel"
    )
    attempts: Attempts = Field(
        default=5,
        description="Consecutive failures of a shot without progress after which it is skipped",
    )
    retry_failed: bool = Field(default=False, description="Render failed shots again")
    dry_run: bool = Field(
        default=False, description="Check the shots and print the estimated time, without rendering"
    )
    watch: bool = Field(
        default=False,
        description="Keep running when all shots are done, and render rows that are added",
    )
