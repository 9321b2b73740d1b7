"""How the ranks of an engine share the work."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from longtake.configs.base import StrictModel

Degree = Annotated[int, Field(ge=1, le=65536)]


class ParallelConfig(StrictModel):
    """The degrees that are asked for; what is left out follows from the devices and the request."""

    ulysses_degree: Degree | None = Field(
        default=None, description="Ranks that exchange tokens for heads"
    )
    ring_degree: Degree | None = Field(
        default=None, description="Ranks round which keys and values travel"
    )
    cfg_degree: Degree | None = Field(
        default=None,
        le=2,
        description="2 computes the branches of true CFG side by side, 1 in turn",
    )
    shard_weights: bool = Field(
        default=False,
        description="Split the transformer's weights over all ranks, and fetch a block at a time",
    )
