"""Types of request fields, for requests and for the options of model families."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field


def matches(pattern: str, rule: str) -> AfterValidator:
    """A validator for text that must match a pattern; an error reads "must be" and the rule."""

    def check(text: str) -> str:
        if re.fullmatch(pattern, text) is None:
            raise ValueError(f"must be {rule}")
        return text

    return AfterValidator(check)


def _must_fall(sigmas: tuple[float, ...]) -> tuple[float, ...]:
    if any(later >= sigma for sigma, later in zip(sigmas, sigmas[1:], strict=False)):
        raise ValueError("must fall from each step to the next")
    return sigmas


MAX_PIXELS = 16384
MAX_FRAMES = 16384
MAX_SEED = 2**63 - 1
MAX_PROMPT = 100_000
"""Maximum length of a prompt in characters."""

Pixels = Annotated[int, Field(ge=1, le=MAX_PIXELS)]
Frames = Annotated[int, Field(ge=1, le=MAX_FRAMES)]
Steps = Annotated[int, Field(ge=1, le=10000)]
Scale = Annotated[float, Field(ge=0, le=1000, allow_inf_nan=False)]
Shift = Annotated[float, Field(ge=0.01, le=1000, allow_inf_nan=False)]
Sigma = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Sigmas = Annotated[
    tuple[Sigma, ...], Field(min_length=1, max_length=10000), AfterValidator(_must_fall)
]
FewStepName = Annotated[
    str,
    Field(max_length=64),
    matches(
        r"[A-Za-z0-9][A-Za-z0-9._-]*", "a name of letters, digits, dots, hyphens and underscores"
    ),
]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
Videos = Annotated[int, Field(ge=1, le=1024)]
Rate = Annotated[float, Field(ge=0.1, le=1000, allow_inf_nan=False)]
TextTokens = Annotated[int, Field(ge=1, le=100_000)]
Digest = Annotated[str, matches(r"[0-9a-f]{64}", "64 hexadecimal digits, as sha256sum prints")]
OutputType = Literal["frames", "latents"]
DecodeMode = Literal["tiled", "framewise", "whole"]
ResizeMode = Literal["crop", "pad", "stretch"]
TileSize = tuple[Frames, Pixels, Pixels]
"""Frames, height and width."""
