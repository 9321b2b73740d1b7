"""Runs a module in a child process with limits on CPU time and memory."""

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
"""Variables that Python may need to start and to find libraries. Others may hold secrets."""
_PR_SET_PDEATHSIG = 1


def run_limited(
    module: str, arguments: Sequence[str], content: bytes, timeout_s: float, result: int
) -> subprocess.CompletedProcess[bytes]:
    """Run a module that calls :func:`limit_this_process`, until its process ends.

    Args:
        module: Name of the module.
        arguments: Its arguments after this process's id and the number of ``result``.
        content: Its stdin.
        timeout_s: Wall-clock seconds after which it is killed.
        result: File descriptor that it may write to.

    Raises:
        subprocess.TimeoutExpired: It was killed.
        OSError: It could not be started.
    """
    return subprocess.run(
        [sys.executable, "-m", module, str(os.getpid()), str(result), *arguments],
        input=content,
        capture_output=True,
        timeout=timeout_s,
        pass_fds=(result,),
        env=_environment(),
        cwd="/",  # not a folder whose files could shadow a library
        start_new_session=True,  # Ctrl-C reaches only the parent, which ends this one
        check=False,
    )


def limit_this_process(parent: int, cpu_s: float, memory_bytes: int, file_bytes: int) -> None:
    """Limit this process from now on, and end it when its parent ends.

    Args:
        parent: Process id of the parent.
        cpu_s: CPU seconds after which SIGPROF ends this process.
        memory_bytes: Address space that it may take beyond what it has.
        file_bytes: Largest file that it may write.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # the parent ended before prctl
        sys.exit(1)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + memory_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
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
