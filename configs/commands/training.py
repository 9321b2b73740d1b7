"""Options of a training plan: plan --train."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from longtake.configs.base import StrictModel
from longtake.configs.parallel import Degree


class TrainingConfig(StrictModel):
    """The work of one optimizer step, and what is fixed of the layout."""

    sequence_length: Annotated[int, Field(ge=1, le=2**30)] = Field(
        default=8192, description="With --train: tokens of one sequence"
    )
    batch_size: Annotated[int, Field(ge=1, le=2**20)] = Field(
        default=1, description="With --train: sequences of one optimizer step, over all devices"
    )
    recompute: Literal["auto", "none", "selective", "full"] = Field(
        default="auto",
        description="With --train: what backward recomputes: nothing; all but attention, of which "
        "output and log-sum-exp are kept, while Ulysses exchanges q, k and v again (longtake's "
        "operator keeps these and its output as exchanged instead, (2N+2M)*H*e bytes a token, for "
        "N query and M KV heads of H elements of e bytes); all; auto is the least that fits",
    )
    zero_stage: Annotated[int, Field(ge=0, le=3)] | None = Field(
        default=None,
        description="With --train: ZeRO's stage (0 none, 1 optimizer states, 2 and gradients, 3 "
        "and parameters); all by default",
    )
    data_degree: Degree | None = Field(
        default=None, description="With --train: replicas that take different sequences"
    )
    tensor_degree: Degree | None = Field(
        default=None, description="With --train: ranks that each matrix is split over"
    )
    pipeline_degree: Degree | None = Field(
        default=None, description="With --train: stages that the blocks are split into"
    )
    tensor_sequence: Literal["true", "false"] | None = Field(
        default=None,
        description="With --train: whether tensor ranks split the tokens between their matrices; "
        "both by default",
    )
    top: Annotated[int, Field(ge=1, le=100_000)] = Field(
        default=15, description="With --train: rows of a table; --json has all layouts"
    )
