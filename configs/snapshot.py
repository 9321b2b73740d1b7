"""How often the state of a rendering is saved."""

from __future__ import annotations

from pydantic import Field

from longtake.configs.base import Seconds, StrictModel
from longtake.configs.field_types import Steps


class SnapshotConfig(StrictModel):
    """Snapshots of the denoising state. By default, as often as costs 1 % of the time."""

    snapshot_steps: Steps | None = Field(
        default=None,
        description="Steps between snapshots, the most that a failure can lose; by default as "
        "often as costs 1 % of the time",
    )
    snapshot_s: Seconds | None = Field(
        default=None, description="Seconds between snapshots; the same default"
    )
