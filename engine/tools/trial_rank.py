"""A rank of a trial: ``python -m longtake.engine.tools.trial_rank``.

It joins the others, calls the function that it was told of, posts what that returned on the store
of whoever started it, and ends; at the latest at its deadline, or within a second of its parent.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import os
import signal
import sys
import threading
import time
import traceback
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from longtake.engine.launch.channel import Mailbox
from longtake.errors import one_line
from longtake.parallel import World


def main() -> int:
    """Run one rank; returns its exit code."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the command's to hear
    threading.Thread(
        target=_end_with_parent, args=(int(os.environ["LONGTAKE_PARENT"]),), daemon=True
    ).start()
    rank, deadline_s = int(os.environ["RANK"]), float(os.environ["LONGTAKE_DEADLINE_S"])
    faulthandler.dump_traceback_later(deadline_s, exit=True)
    store = dist.TCPStore(
        "127.0.0.1", int(os.environ["LONGTAKE_PORT"]), is_master=False, wait_for_workers=False
    )
    mailbox = Mailbox(store, "mail")
    try:
        answer = _function()(
            _join(store, rank, deadline_s), **json.loads(os.environ["LONGTAKE_ARGUMENTS"])
        )
        dist.barrier()  # without it gloo's ranks abort at exit now and then
        dist.destroy_process_group()
        mailbox.post({"rank": rank, "answer": answer})
        return 0
    except BaseException as error:
        traceback.print_exc()
        mailbox.post({"rank": rank, "failure": f"{type(error).__name__}: {one_line(error)}"})
        return 1


def _function() -> Any:
    module, _, name = os.environ["LONGTAKE_FUNCTION"].partition(":")
    if not module.startswith("longtake."):
        raise ImportError(f"{module} is no module of longtake's")
    return getattr(importlib.import_module(module), name)


def _join(store: dist.Store, rank: int, timeout_s: float) -> World:
    """Meet the others, in a group like that of a rendering."""
    on_gpu = os.environ["LONGTAKE_DEVICE"] == "cuda"
    device = torch.device("cuda", rank) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
        store=dist.PrefixStore("ranks", store),
        rank=rank,
        world_size=int(os.environ["WORLD_SIZE"]),
        timeout=timedelta(seconds=timeout_s),
        device_id=device if on_gpu else None,
    )
    return World(device, dist.group.WORLD, dist.group.WORLD, timeout_s=timeout_s)


def _end_with_parent(pid: int) -> None:
    """End this process within a second of its parent's end, whatever it is doing."""
    while os.getppid() == pid:  # an orphan is given another parent
        time.sleep(0.5)
    os._exit(1)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # a lost peer's backend threads must not hold up the end
