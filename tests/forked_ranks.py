"""Forks ranks from a server process that has imported their modules.

A new interpreter takes some three CPU seconds to import torch, diffusers and transformers; a forked
one takes none. All else is the same: each rank has a process, an environment, log files, signals
and an exit code. Tests of the start of ranks, their memory or their command line use the fixture
``new_ranks``.
"""

from __future__ import annotations

import multiprocessing as mp
import os
import runpy
import signal
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.api import SubprocessContext

PRELOADED = [
    "torch.distributed.device_mesh",
    "longtake.parallel",
    "longtake.engine.launch.protocol.rank_server",
    "longtake.cli.main",
    "longtake.engine.render_to_files",
    "longtake.serve.server",
    "longtake.pipelines.models.hunyuan_video.conditioner.image_text",
    "longtake.pipelines.models.hunyuan_video.image_to_video",
]
"""Modules that the server imports before the first fork."""

DEAD_DEVICE = "LONGTAKE_TEST_DEAD_DEVICE"
"""Environment variable with the index of a device whose rank is killed at its start."""

_NAME = "forked rank "
"""Start of a forked rank's name; its environment is not visible from outside."""


def fork_context() -> Any:
    """The multiprocessing context that forks processes from the preloaded server."""
    context: Any = mp.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


@dataclass
class _Handler:
    """The part of torch's ``SubprocessHandler`` that longtake uses."""

    process: BaseProcess
    _stdout: None = None
    _stderr: None = None

    @property
    def proc(self) -> _Handler:
        return self

    def poll(self) -> int | None:
        """The exit code, or None while the process runs."""
        return self.process.exitcode


class ForkedRanks(SubprocessContext):
    """Replaces the context that torch's ``start_processes`` returns.

    Args:
        args: Arguments of the interpreter, by rank; the last two are ``-m`` and the module.
        envs: Environment variables in addition to this process's own, by rank.
        logs: Files for stdout and stderr, by rank.
    """

    def __init__(
        self, args: dict[int, tuple[str, ...]], envs: dict[int, dict[str, str]], logs: Any
    ) -> None:
        self.stderrs = logs.stderrs
        self.subprocess_handlers = {}
        for rank, arguments in args.items():
            process = fork_context().Process(
                target=_run,
                args=(
                    arguments[-1],
                    {**os.environ, **envs[rank]},
                    logs.stdouts[rank],
                    logs.stderrs[rank],
                ),
                daemon=True,
            )
            process.start()
            self.subprocess_handlers[rank] = _Handler(process)  # type: ignore[assignment]

    def pids(self) -> dict[int, int]:
        """Process ids, by rank."""
        return {rank: each.process.pid for rank, each in self.subprocess_handlers.items()}  # type: ignore[attr-defined]

    def close(self, death_sig: signal.Signals | None = None, timeout: int = 30) -> None:
        """Kill all processes and wait until they have ended."""
        for each in self.subprocess_handlers.values():
            each.process.kill()  # type: ignore[attr-defined]
        for each in self.subprocess_handlers.values():
            each.process.join(timeout)  # type: ignore[attr-defined]


def start_processes(
    name: str,
    entrypoint: str,
    args: dict[int, tuple[str, ...]],
    envs: dict[int, dict[str, str]],
    logs_specs: DefaultLogsSpecs,
) -> ForkedRanks:
    """Replaces ``torch.distributed.elastic.multiprocessing.start_processes``."""
    return ForkedRanks(args, envs, logs_specs.reify(envs))


def rank_of(process: psutil.Process) -> int | None:
    """The number of a rank, forked or not; None for another process."""
    if (name := process.name()).startswith(_NAME):
        return int(name.removeprefix(_NAME))
    number = process.environ().get("RANK")
    return None if number is None else int(number)


def _run(module: str, environment: dict[str, str], stdout: str, stderr: str) -> None:
    """Run a module as ``python -m`` does, with its own environment and log files."""
    os.environ.clear()
    os.environ.update(environment)
    Path("/proc/self/comm").write_text(_NAME + environment["RANK"])
    if environment.get(DEAD_DEVICE) == environment.get("LONGTAKE_DEVICE", ""):
        os.kill(os.getpid(), signal.SIGKILL)
    os.environ["LONGTAKE_PARENT"] = str(os.getppid())  # the server, not the engine
    server: Any = forkserver._forkserver
    os.close(server._forkserver_alive_fd)  # the server ends with the engine
    for path, number in ((stdout, 1), (stderr, 2)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)
        os.close(file)
    runpy.run_module(module, run_name="__main__", alter_sys=True)
