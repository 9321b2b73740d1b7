"""Identifies the process that holds a claim, across restarts, containers and hosts."""

from __future__ import annotations

import os
import secrets
import socket
from pathlib import Path

import psutil
from pydantic import BaseModel


class Owner(BaseModel):
    """Identity of a process and, optionally, of one queue that it opened.

    PID and start time identify a process on one running system. Host, boot and namespace exclude
    processes of another host, of an earlier boot, and of another container.

    Attributes:
        host: Host name.
        boot: Boot ID of the kernel.
        namespace: Inode of the PID namespace; differs between containers.
        pid: Process ID.
        started: Start of the process in clock ticks since boot; PIDs are reused.
        queue: Random ID of one open queue of the process; empty for the process as a whole.
    """

    host: str
    boot: str
    namespace: int
    pid: int
    started: int
    queue: str = ""

    @classmethod
    def this_process(cls) -> Owner:
        """The identity of the calling process."""
        process = psutil.Process()
        return cls(
            host=socket.gethostname(),
            boot=Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
            namespace=os.stat("/proc/self/ns/pid").st_ino,
            pid=process.pid,
            started=_start_ticks(process),
        )

    @classmethod
    def new_queue(cls) -> Owner:
        """The identity of a queue that the calling process opens."""
        return cls.this_process().model_copy(update={"queue": secrets.token_hex(8)})

    def ended(self, here: Owner) -> bool | None:
        """Whether this process has ended, as seen from the process ``here``.

        Returns:
            None if that is unknown: on another host, in another container, or for another queue of
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
        try:
            process = psutil.Process(self.pid)
            zombie = process.status() == psutil.STATUS_ZOMBIE
            return zombie or _start_ticks(process) != self.started
        except psutil.NoSuchProcess:
            return True


def _start_ticks(process: psutil.Process) -> int:
    """Start of a process in clock ticks since boot.

    ``create_time()`` is wall-clock time and moves whenever the system clock is set; its distance
    from the boot time does not.
    """
    boot_time_s = psutil.boot_time()  # before create_time(), which uses psutil 6's cached value
    return round((process.create_time() - boot_time_s) * os.sysconf("SC_CLK_TCK"))
