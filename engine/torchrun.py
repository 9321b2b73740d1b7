"""The environment variables that torchrun sets. No other module reads them."""

from __future__ import annotations

import os
from dataclasses import dataclass

from longtake.errors import LayoutError


@dataclass(frozen=True)
class TorchrunEnvironment:
    """What torchrun's environment variables say about this process.

    Attributes:
        rank: Rank among all ranks.
        world_size: Number of ranks.
        local_rank: Rank among the ranks of this host.
        local_world_size: Number of ranks on this host.
        master_address: ``host:port`` where the ranks meet.
    """

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    master_address: str = "?:?"

    @classmethod
    def is_set(cls) -> bool:
        """Whether torchrun, or another launcher that sets its variables, started this process."""
        return "RANK" in os.environ and "WORLD_SIZE" in os.environ

    @classmethod
    def is_writer(cls) -> bool:
        """Whether this process writes output: rank 0 under torchrun, any process without it."""
        return not cls.is_set() or os.environ["RANK"] == "0"

    @classmethod
    def message_prefix(cls) -> str:
        """What this process's messages begin with: "rank 3: ", or nothing if it writes output."""
        return "" if cls.is_writer() else f"rank {os.environ['RANK']}: "

    @classmethod
    def detect(cls) -> TorchrunEnvironment | None:
        """The environment of this process, or None if torchrun did not start it.

        Raises:
            LayoutError: As :meth:`from_environment`.
        """
        return cls.from_environment() if cls.is_set() else None

    @classmethod
    def from_environment(cls) -> TorchrunEnvironment:
        """Read RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT.

        Without the local variables, all ranks are assumed to run on one host.

        Raises:
            LayoutError: A variable is not a number, or the numbers contradict each other.
        """
        world_size = _number("WORLD_SIZE", None, 1)
        rank = _number("RANK", None, 0, world_size)
        local_world_size = _number("LOCAL_WORLD_SIZE", world_size, 1, world_size + 1)
        local_rank = _number("LOCAL_RANK", rank % local_world_size, 0, local_world_size)
        address = ":".join(os.environ.get(name, "?") for name in ("MASTER_ADDR", "MASTER_PORT"))
        return cls(rank, world_size, local_rank, local_world_size, address)


def _number(name: str, default: int | None, first: int, end: int | None = None) -> int:
    """A variable's value, which must be at least ``first`` and below ``end``."""
    value = os.environ.get(name, "" if default is None else str(default))
    if value.isdecimal() and first <= int(value) and (end is None or int(value) < end):
        return int(value)
    most = "" if end is None else f" and at most {end - 1}"
    raise LayoutError(
        f"{name}={value!r} in the environment must be a whole number of at least {first}{most}: "
        "torchrun sets it; to start ranks with --devices, unset RANK and WORLD_SIZE"
    )
