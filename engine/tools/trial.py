"""Run one function on several ranks of this machine, for checks and measurements.

What a rank executes is in :mod:`longtake.engine.tools.trial_rank`.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from typing import Any, Literal

from longtake.engine.launch.local_rendezvous import LocalEnvironment, listen_locally
from longtake.engine.launch.protocol.channel import Mailbox
from longtake.engine.launch.rank_processes import RankProcesses
from longtake.engine.tools.trial_rank import RESULTS
from longtake.errors import RankError


def on_ranks(
    function: Callable[..., Any],
    num_ranks: int,
    device_type: Literal["cpu", "cuda"],
    deadline_s: float,
    **arguments: Any,
) -> list[Any]:
    """Call ``function(world, **arguments)`` on ranks over gloo, or over NCCL on the first GPUs.

    The ranks listen on localhost only, and have ended when this returns or raises.

    Args:
        function: A module-level function of longtake whose first argument is a
            :class:`longtake.parallel.World`.
        num_ranks: Number of ranks.
        device_type: "cpu" or "cuda".
        deadline_s: Seconds after which all ranks are ended.
        arguments: Further arguments; they and the returned values must be JSON.

    Returns:
        What each rank returned, by rank.

    Raises:
        RankError: A rank failed or died, or the deadline passed.
    """
    store = listen_locally()
    call = {
        "LONGTAKE_ARGUMENTS": json.dumps(arguments),
        "LONGTAKE_DEADLINE_S": str(deadline_s),
        "LONGTAKE_DEVICE": device_type,
        "LONGTAKE_FUNCTION": f"{function.__module__}:{function.__qualname__}",
    }
    environments = {
        rank: {**_variables(LocalEnvironment(rank, num_ranks, store.port, os.getpid())), **call}
        for rank in range(num_ranks)
    }
    ranks = RankProcesses("longtake.engine.tools.trial_rank", environments)
    try:
        return _results(Mailbox(store, RESULTS), ranks, num_ranks, deadline_s)
    finally:
        ranks.kill()


def _variables(environment: LocalEnvironment) -> dict[str, str]:
    num_threads = os.environ.get("OMP_NUM_THREADS", "1")
    return {**environment.variables(), "OMP_NUM_THREADS": num_threads}


def _results(
    mailbox: Mailbox, ranks: RankProcesses, num_ranks: int, deadline_s: float
) -> list[Any]:
    """What each rank returned, by rank."""
    deadline = time.monotonic() + deadline_s
    results: dict[int, Any] = {}
    while len(results) < num_ranks:
        if time.monotonic() > deadline:
            raise RankError(f"{num_ranks} ranks were not done in {deadline_s:g} s, and were ended")
        # Exit codes first: a rank that had already died then and posted nothing will post nothing.
        died = {rank: code for rank, code in ranks.exit_codes().items() if code}
        received = mailbox.read(timeout_s=0.1)
        if received is not None:
            message = received[0]
            if "failure" in message:
                raise RankError(f"rank {message['rank']} failed: {message['failure']}")
            results[message["rank"]] = message["result"]
        elif died:
            rank, code = next(iter(died.items()))
            last_line = "".join(ranks.last_lines(rank)[-1:]) or "nothing"
            raise RankError(f"rank {rank} died (exit code {code}); its last line: {last_line}")
    return [results[rank] for rank in range(num_ranks)]
