"""How often a rendering is kept, so that it can go on from there."""

from __future__ import annotations

from pydantic import Field

from longtake.configs.base import StrictModel
from longtake.configs.engine import Seconds
from longtake.configs.request import Steps


class SnapshotConfig(StrictModel):
    """Snapshots of the latents on their way. With neither, as often as costs 1 % of the time."""

    snapshot_steps: Steps | None = Field(
        default=None,
        description="Finished steps from one snapshot to the next, and so the most that are lost; "
        "as often as costs 1 % of the time",
    )
    snapshot_s: Seconds | None = Field(
        default=None, description="Seconds from one snapshot to the next; likewise"
    )
