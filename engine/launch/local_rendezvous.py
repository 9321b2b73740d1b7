"""How processes on this machine find the process that started them, and end with it."""

from __future__ import annotations

import os
import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist

from longtake import errors
from longtake.engine.launch.process_group import Rendezvous

_HOST = "127.0.0.1"
_PARENT_CHECK_S = 0.5


def listen_locally() -> dist.TCPStore:
    """A store that only this machine can reach; torch's own would listen on every interface."""
    listener = socket.socket()
    listener.bind((_HOST, 0))
    listener.listen(1024)
    port = listener.getsockname()[1]
    return dist.TCPStore(
        _HOST,
        port,
        is_master=True,
        wait_for_workers=False,
        master_listen_fd=listener.detach(),
    )


@dataclass(frozen=True)
class LocalEnvironment:
    """How a process on this machine joins the others, passed in its environment variables.

    Attributes:
        rank: Rank of the process.
        world_size: Number of ranks.
        port: Port of the store on localhost.
        parent_pid: Process that starts the ranks.
    """

    rank: int
    world_size: int
    port: int
    parent_pid: int

    def variables(self) -> dict[str, str]:
        """The environment variables to start the rank's process with."""
        package = str(Path(errors.__file__).parent.parent)
        paths = [package, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
        return {
            "RANK": str(self.rank),
            "LOCAL_RANK": str(self.rank),
            "WORLD_SIZE": str(self.world_size),
            "LOCAL_WORLD_SIZE": str(self.world_size),
            "LONGTAKE_PORT": str(self.port),
            "LONGTAKE_PARENT": str(self.parent_pid),
            "PYTHONPATH": os.pathsep.join(paths),
            "GLOO_SOCKET_IFNAME": "lo",
            "NCCL_SOCKET_IFNAME": "lo",
        }

    @classmethod
    def from_environment(cls) -> LocalEnvironment:
        """Read the variables that :meth:`variables` set."""
        names = ("RANK", "WORLD_SIZE", "LONGTAKE_PORT", "LONGTAKE_PARENT")
        return cls(*(int(os.environ[name]) for name in names))

    def connect(self) -> dist.TCPStore:
        """A new connection to the store."""
        return dist.TCPStore(_HOST, self.port, is_master=False, wait_for_workers=False)

    def rendezvous(self, store: dist.Store) -> Rendezvous:
        """Where this rank meets the others: on the store of the process that started them."""
        shared = dist.PrefixStore("ranks", store)
        return Rendezvous(self.rank, self.world_size, f"{_HOST}:{self.port}", shared)

    def end_with_parent(self) -> None:
        """End this process within a second of its parent's end, whatever it is doing."""
        threading.Thread(target=_wait_for_parent, args=(self.parent_pid,), daemon=True).start()


def _wait_for_parent(pid: int) -> None:
    while os.getppid() == pid:  # an orphan gets another parent
        time.sleep(_PARENT_CHECK_S)
    os._exit(1)
