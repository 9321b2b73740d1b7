"""A module run in a process of its own, whose CPU time and memory are limited."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from longtake import errors

_INHERITED = ("HOME", "LD_LIBRARY_PATH", "PATH", "PYTHONHOME", "PYTHONUSERBASE")
"""Variables that Python may need to start and to find libraries. Secrets stay here."""
_PR_SET_PDEATHSIG = 1


def run_limited(
    module: str, arguments: Sequence[str], content: bytes, timeout_s: float, result: int
) -> subprocess.CompletedProcess[bytes]:
    """Run a module that calls :func:`limit_this_process`; returns when its process has ended.

    Args:
        arguments: after the number of the result's file descriptor.
        content: that it reads from stdin.
        timeout_s: on the clock, after which it is killed.
        result: file descriptor that it may write to.

    Raises:
        subprocess.TimeoutExpired: it was killed.
        OSError: it could not be started.
    """
    return subprocess.run(
        [sys.executable, "-m", module, str(os.getpid()), str(result), *arguments],
        input=content,
        capture_output=True,
        timeout=timeout_s,
        pass_fds=(result,),
        env=_environment(),
        cwd="/",  # so that nothing in the current folder is taken for a library
        start_new_session=True,  # Ctrl-C is for the parent alone, which ends this one
        check=False,
    )


def limit_this_process(parent: int, cpu_s: float, memory_bytes: int, file_bytes: int) -> None:
    """Limit what this process may use from now on; it also ends when its parent does.

    Args:
        parent: its process id.
        cpu_s: after which SIGPROF ends it.
        memory_bytes: of address space beside what is in use, beyond which there is no more.
        file_bytes: that it may write to a file.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before that
        sys.exit(1)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + memory_bytes
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGPROF,))
    signal.setitimer(signal.ITIMER_PROF, cpu_s)


def _environment() -> dict[str, str]:
    package = str(Path(errors.__file__).parent.parent)
    others = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    return {
        **{name: os.environ[name] for name in _INHERITED if name in os.environ},
        "PYTHONPATH": os.pathsep.join([package, *map(os.path.abspath, others)]),
        "OPENBLAS_NUM_THREADS": "1",  # each thread takes address space
        "OMP_NUM_THREADS": "1",
    }
