"""Who holds a claim on a job: a process, told from all others on this host and elsewhere, and a
queue that it opened."""

from __future__ import annotations

import os
import secrets
import socket
from pathlib import Path

from pydantic import BaseModel


class Owner(BaseModel):
    """A process.

    Attributes:
        host: its name.
        boot: of the system's kernel, which a restart changes.
        namespace: of process numbers, which differs between containers.
        pid: its number.
        started: clock ticks from the boot to its start: numbers are given again.
        queue: tells the queues that one process opens from each other; empty: none.
    """

    host: str
    boot: str
    namespace: int
    pid: int
    started: int
    queue: str = ""

    @classmethod
    def this_process(cls) -> Owner:
        """The one that calls."""
        state_and_start = _state_and_start(os.getpid())
        assert state_and_start is not None
        return cls(
            host=socket.gethostname(),
            boot=Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
            namespace=os.stat("/proc/self/ns/pid").st_ino,
            pid=os.getpid(),
            started=state_and_start[1],
        )

    @classmethod
    def new_queue(cls) -> Owner:
        """A queue that this process opens."""
        return cls.this_process().model_copy(update={"queue": secrets.token_hex(8)})

    def ended(self, here: Owner) -> bool | None:
        """Whether it has ended, as seen from a process of this host.

        None: nothing is certain of another host's, of another container's, and of another queue of
        the same process, whose workers may have ended.
        """
        if self.host != here.host:
            return None
        if self.boot != here.boot:
            return True
        if self.namespace != here.namespace:
            return None
        if (self.pid, self.started) == (here.pid, here.started) and self.queue != here.queue:
            return None
        found = _state_and_start(self.pid)
        return found is None or found[0] == "Z" or found[1] != self.started


def _state_and_start(pid: int) -> tuple[str, int] | None:
    """The state of a process and its start, from Linux's /proc; None if there is no such one."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat.rpartition(")")[2].split()  # the name before it may hold anything
    return fields[0], int(fields[19])
