"""Options of plan, doctor, verify and bench, on top of those of a rendering."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from longtake.configs.base import StrictModel
from longtake.configs.field_types import matches

Layout = Annotated[
    str,
    matches(
        r"[1-9][0-9]{0,4}(x[1-9][0-9]{0,4}){1,2}",
        "RINGxULYSSES or CFGxRINGxULYSSES, such as 2x4 or 1x2x4",
    ),
]
"""``ring x ulysses`` or ``cfg x ring x ulysses``, e.g. 2x4 or 1x2x4."""


class PlanConfig(StrictModel):
    """Options of plan."""

    train: bool = Field(
        default=False,
        description="Plan the training of a decoder instead of a video: --model is then "
        "llama2-7b, llama3-8b, llama3-70b, or a transformers config.json or its folder",
    )
    gpu: str = Field(
        default="here",
        min_length=1,
        description="Hardware: the name of a profile (h100, l20, ...), a YAML file, or here for "
        "this machine",
    )
    gpus_per_node: Annotated[int, Field(ge=1, le=1024)] | None = Field(
        default=None, description="GPUs per node; the profile's number by default"
    )
    text_tokens: Annotated[int, Field(ge=1, le=100_000)] | None = Field(
        default=None, description="Tokens of the encoded prompt; the model's maximum by default"
    )
    decode_ranks: Annotated[int, Field(ge=1, le=65536)] | None = Field(
        default=None, description="Ranks that decode; all by default"
    )
    what_fits: bool = Field(
        default=False,
        description="Instead of one video, list the sizes and lengths that fit, for each released "
        "model or for --model",
    )


class DoctorConfig(StrictModel):
    """Options of doctor."""

    folder: str = Field(
        default=".", min_length=1, description="Output folder whose free space is checked"
    )
    port: Annotated[int, Field(ge=0, le=65535)] = Field(
        default=0, description="Port that should be free; any by default"
    )


class VerifyConfig(StrictModel):
    """Options of verify."""

    layout: tuple[Layout, ...] | None = Field(
        default=None,
        description="Layouts as RINGxULYSSES or CFGxRINGxULYSSES, such as 2x2 1x4; by default all "
        "layouts of the devices",
    )
    tolerance: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = Field(
        default=None,
        description="Largest allowed difference of latents; by default 1e-4 in float32, 5e-2 in "
        "half precision",
    )


class BenchConfig(StrictModel):
    """Options of bench."""

    calibrate: bool = Field(
        default=False, description="Write a hardware profile of this machine, for plan --gpu FILE"
    )
    rounds: Annotated[int, Field(ge=1, le=1000)] = Field(
        default=5, description="Repetitions per figure, of which the median is reported"
    )
    output: str | None = Field(
        default=None, min_length=1, description="Output file; named by date and time by default"
    )
    overwrite: bool = Field(default=False, description="Overwrite an existing file")
    suite: Literal["all", "kernels", "links", "step", "decode"] = Field(
        default="all", description="What to measure"
    )
