"""Ranks on this machine that call one function together, and end: for trials and measurements.

What a rank executes is :mod:`longtake.engine.tools.trial_rank`.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from longtake import errors
from longtake.engine.launch.channel import Mailbox, listen_locally
from longtake.engine.launch.rank_processes import RankProcesses
from longtake.errors import RankError


def on_ranks(
    function: Callable[..., Any],
    num_ranks: int,
    device_type: Literal["cpu", "cuda"],
    deadline_s: float,
    **arguments: Any,
) -> list[Any]:
    """Call ``function(world, **arguments)`` on ranks over gloo, or over NCCL on the first GPUs.

    The ranks listen on this machine alone, and have ended when this returns or raises.

    Args:
        function: of a module; takes a :class:`longtake.parallel.World` first.
        deadline_s: seconds for all of it.
        arguments: and what is returned must survive a trip through JSON.

    Returns:
        What each rank returned, by rank.

    Raises:
        RankError: a rank failed or died, or they were not done by the deadline.
    """
    store = listen_locally()
    call = {
        "LONGTAKE_ARGUMENTS": json.dumps(arguments),
        "LONGTAKE_FUNCTION": f"{function.__module__}:{function.__qualname__}",
    }
    environments = {
        rank: {**_environment(rank, num_ranks, device_type, store.port, deadline_s), **call}
        for rank in range(num_ranks)
    }
    ranks = RankProcesses("longtake.engine.tools.trial_rank", environments)
    try:
        return _answers(Mailbox(store, "mail"), ranks, num_ranks, deadline_s)
    finally:
        ranks.kill()


def _environment(
    rank: int, num_ranks: int, device_type: str, port: int, deadline_s: float
) -> dict[str, str]:
    package = str(Path(errors.__file__).parent.parent)
    paths = [package, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(num_ranks),
        "LONGTAKE_DEADLINE_S": str(deadline_s),
        "LONGTAKE_DEVICE": device_type,
        "LONGTAKE_PARENT": str(os.getpid()),
        "LONGTAKE_PORT": str(port),
        "PYTHONPATH": os.pathsep.join(paths),
        "GLOO_SOCKET_IFNAME": "lo",
        "NCCL_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
    }


def _answers(
    mailbox: Mailbox, ranks: RankProcesses, num_ranks: int, deadline_s: float
) -> list[Any]:
    """What each rank returned."""
    deadline = time.monotonic() + deadline_s
    said: dict[int, Any] = {}
    while len(said) < num_ranks:
        if time.monotonic() > deadline:
            raise RankError(f"{num_ranks} ranks were not done in {deadline_s:g} s, and were ended")
        died = {rank: code for rank, code in ranks.exit_codes().items() if code}
        read = mailbox.read(timeout_s=0.1)
        if read is not None:
            message = read[0]
            if "failure" in message:
                raise RankError(f"rank {message['rank']} failed: {message['failure']}")
            said[message["rank"]] = message["answer"]
        elif died:  # before this reading, and yet it posted nothing
            rank, code = next(iter(died.items()))
            last = "".join(ranks.last_lines(rank)[-1:]) or "nothing"
            raise RankError(f"rank {rank} died (exit code {code}); the last it said: {last}")
    return [said[rank] for rank in range(num_ranks)]
