"""What the commands that say what will happen take beside what a rendering takes."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from longtake.configs.base import StrictModel, written_as

Layout = Annotated[
    str,
    written_as(
        r"[1-9][0-9]{0,4}(x[1-9][0-9]{0,4}){1,2}",
        "RINGxULYSSES or CFGxRINGxULYSSES, 2x4 or 1x2x4 say",
    ),
]
"""``ring x ulysses`` or ``cfg x ring x ulysses``, e.g. 2x4 or 1x2x4."""


class PlanConfig(StrictModel):
    """What a plan is made for."""

    gpu: str = Field(
        default="here",
        min_length=1,
        description="Hardware: a profile's name (h100, l20, ...), a YAML file of one, or here, "
        "for what this machine has",
    )
    gpus_per_node: Annotated[int, Field(ge=1, le=1024)] | None = Field(
        default=None, description="GPUs of one machine; the profile's"
    )
    text_tokens: Annotated[int, Field(ge=1, le=100_000)] | None = Field(
        default=None, description="Tokens of the encoded prompt; as many as the model takes"
    )
    decode_ranks: Annotated[int, Field(ge=1, le=65536)] | None = Field(
        default=None, description="Ranks that decode; all of them"
    )


class DoctorConfig(StrictModel):
    """What is looked at."""

    folder: str = Field(
        default=".", min_length=1, description="Where videos would go: its free space is looked at"
    )
    port: Annotated[int, Field(ge=0, le=65535)] = Field(
        default=0, description="A port that should be free; any"
    )


class VerifyConfig(StrictModel):
    """What is compared with what."""

    layout: tuple[Layout, ...] | None = Field(
        default=None,
        description="Layouts as RINGxULYSSES or CFGxRINGxULYSSES, e.g. 2x2 1x4; all of the devices",
    )
    tolerance: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = Field(
        default=None,
        description="Largest difference of latents; 1e-4 in float32, 5e-2 in half precision",
    )


class BenchConfig(StrictModel):
    """What is measured."""

    calibrate: bool = Field(
        default=False, description="Write a hardware profile of this machine, for plan --gpu FILE"
    )
    rounds: Annotated[int, Field(ge=1, le=1000)] = Field(
        default=5, description="Times that each figure is measured; the median counts"
    )
    output: str | None = Field(
        default=None, min_length=1, description="File that is written; by date and time"
    )
    overwrite: bool = Field(default=False, description="Replace the file, if it is there")
    suite: Literal["all", "kernels", "links", "step", "decode"] = Field(
        default="all", description="What is measured"
    )
