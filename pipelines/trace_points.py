"""What a trace records: the points of a rendering, by name."""

from __future__ import annotations

from dataclasses import dataclass

BRANCHES = ("positive", "negative")
"""Of true CFG, in order; without it there is the first alone."""


@dataclass(frozen=True)
class TraceRequest:
    """What to record beside the latents after each step.

    Attributes:
        blocks_of_step: the step, counted from 1, of which each block's output is recorded too.
    """

    blocks_of_step: int | None = None


@dataclass(frozen=True)
class TracePoint:
    """Where on the way something was recorded: the latents after a step, or tokens in it.

    Attributes:
        step: counted from 1.
        block: whose output it is, counted from 1; 0 is what the first block takes in. None: the
            latents.
        name: of the block in its denoiser.
        branch: one of BRANCHES.
    """

    step: int
    block: int | None = None
    name: str = ""
    branch: str = BRANCHES[0]
