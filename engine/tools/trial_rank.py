"""A rank that calls one function: ``python -m longtake.engine.tools.trial_rank``.

It joins the other ranks, calls the function that its environment names, posts the result on its
parent's store, and ends: at its deadline at the latest, or within a second of its parent.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from longtake.engine.launch.local_rendezvous import LocalEnvironment
from longtake.engine.launch.process_group import join_group, leave_group
from longtake.engine.launch.protocol.channel import Mailbox
from longtake.errors import one_line
from longtake.parallel import World

RESULTS = "results"
"""Name of the mailbox in which ranks post what the function returned or raised."""


def main() -> int:
    """Run one rank; returns its exit code."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    environment = LocalEnvironment.from_environment()
    environment.end_with_parent()
    deadline_s = float(os.environ["LONGTAKE_DEADLINE_S"])
    faulthandler.dump_traceback_later(deadline_s, exit=True)
    store = environment.connect()
    mailbox = Mailbox(store, RESULTS)
    try:
        world = _join(environment, store, deadline_s)
        result = _function()(world, **json.loads(os.environ["LONGTAKE_ARGUMENTS"]))
        leave_group()
        mailbox.post({"rank": environment.rank, "result": result})
        return 0
    except BaseException as error:
        traceback.print_exc()
        mailbox.post(
            {"rank": environment.rank, "failure": f"{type(error).__name__}: {one_line(error)}"}
        )
        return 1


def _function() -> Callable[..., Any]:
    """The function that the environment names."""
    module, _, name = os.environ["LONGTAKE_FUNCTION"].partition(":")
    if not module.startswith("longtake."):
        raise ImportError(f"{module} is not a module of longtake")
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return function


def _join(environment: LocalEnvironment, store: dist.Store, timeout_s: float) -> World:
    """Join the other ranks in a group like that of a rendering."""
    on_gpu = os.environ["LONGTAKE_DEVICE"] == "cuda"
    device = torch.device("cuda", environment.rank) if on_gpu else torch.device("cpu")
    group = join_group(environment.rendezvous(store), device, timeout_s)
    return World(device, group, group, timeout_s=timeout_s)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # backend threads of a lost peer must not delay the end
