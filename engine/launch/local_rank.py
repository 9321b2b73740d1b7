"""A rank in a process on the engine's machine: ``python -m longtake.engine.launch.local_rank``."""

from __future__ import annotations

import logging
import os
import signal
import sys

from longtake.imports import garbage_collection_paused


def main() -> int:
    """Run the rank that the environment describes; returns the exit code."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # the engine handles them
        signal.signal(number, signal.SIG_IGN)
    with garbage_collection_paused():
        from longtake.engine.launch.local_rendezvous import LocalEnvironment
        from longtake.engine.launch.protocol.rank_server import run_rank
    environment = LocalEnvironment.from_environment()
    environment.end_with_parent()
    logging.basicConfig(
        level=logging.WARNING, format=f"rank {environment.rank} %(levelname)s %(message)s"
    )
    store = environment.connect()
    return run_rank(store, environment.connect(), environment.rendezvous(store))


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # backend threads of a lost peer must not delay the end
