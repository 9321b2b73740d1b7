"""Names of the values that a trace records."""

from __future__ import annotations

from dataclasses import dataclass

BRANCHES = ("positive", "negative", "third", "fourth", "fifth", "sixth", "seventh", "eighth")
"""Passes of a step in order: the prompt's and, with classifier-free guidance, the negative one;
further ones of families that have more."""


@dataclass(frozen=True)
class TraceRequest:
    """What to record in addition to the latents after each step.

    Attributes:
        blocks_of_step: Step whose block outputs are recorded, counted from 1; None for no blocks.
    """

    blocks_of_step: int | None = None


@dataclass(frozen=True)
class TracePoint:
    """Name of a recorded tensor: the latents after a step, or the tokens of a block.

    Attributes:
        step: Number of the step, counted from 1.
        block: Number of the block whose output it is, counted from 1; 0 is the first block's input;
            None is the latents.
        name: Name of the block in the denoiser.
        branch: Guidance branch, one of BRANCHES.
    """

    step: int
    block: int | None = None
    name: str = ""
    branch: str = BRANCHES[0]
