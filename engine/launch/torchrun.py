"""What torchrun says to each rank in its environment."""

from __future__ import annotations

import os
from dataclasses import dataclass

from longtake.errors import LayoutError


@dataclass(frozen=True)
class TorchrunPlace:
    """This process's place among the ranks that torchrun started.

    Attributes:
        rank, world_size: among all.
        local_rank, local_world_size: among those of this host.
    """

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int

    @classmethod
    def given(cls) -> bool:
        """Whether torchrun, or something like it, started this process."""
        return "RANK" in os.environ and "WORLD_SIZE" in os.environ

    @classmethod
    def writes(cls) -> bool:
        """Whether this process writes the video: rank 0, or one that torchrun did not start."""
        return not cls.given() or os.environ["RANK"] == "0"

    @classmethod
    def from_environment(cls) -> TorchrunPlace:
        """Read RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE; without the last two, one host.

        Raises:
            LayoutError: they are no numbers, or do not fit together.
        """
        world_size = _number("WORLD_SIZE", None, 1)
        rank = _number("RANK", None, 0, world_size)
        local_world_size = _number("LOCAL_WORLD_SIZE", world_size, 1, world_size + 1)
        local_rank = _number("LOCAL_RANK", rank % local_world_size, 0, local_world_size)
        return cls(rank, world_size, local_rank, local_world_size)


def _number(name: str, default: int | None, first: int, end: int | None = None) -> int:
    value = os.environ.get(name, "" if default is None else str(default))
    if value.isdecimal() and first <= int(value) and (end is None or int(value) < end):
        return int(value)
    most = "" if end is None else f" and at most {end - 1}"
    raise LayoutError(
        f"{name}={value!r} in the environment must be a whole number of at least {first}{most}: "
        "torchrun sets it; to start ranks with --devices, unset RANK and WORLD_SIZE"
    )
