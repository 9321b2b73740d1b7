"""How the ranks of an engine share the work of one video."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from longtake.configs.base import StrictModel

Degree = Annotated[int, Field(ge=1, le=65536)]


class ParallelConfig(StrictModel):
    """Parallel degrees. Those left out are chosen for the number of devices and each request."""

    ulysses_degree: Degree | None = Field(
        default=None, description="Ranks that exchange tokens for attention heads (Ulysses)"
    )
    ring_degree: Degree | None = Field(
        default=None, description="Ranks among which keys and values rotate (ring attention)"
    )
    cfg_degree: Degree | None = Field(
        default=None,
        le=2,
        description="Passes of guidance computed in parallel: 2 on separate ranks, 1 in turn",
    )
