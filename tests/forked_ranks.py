"""Ranks forked from one process that has imported what they import, in the place of new ones.

A rank takes some four CPU seconds to import torch, diffusers and transformers, and no time when it
is forked. Whatever else is the same: a process each, its environment, its log files, its signals
and its exit code. Tests about the start of ranks, their memory or their command line use the
fixture ``new_ranks``.
"""

from __future__ import annotations

import multiprocessing as mp
import os
import runpy
import signal
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from typing import Any

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.api import SubprocessContext

PRELOADED = [
    "torch.distributed.device_mesh",
    "longtake.parallel",
    "longtake.engine.launch.protocol.rank_server",
    "longtake.pipelines.hunyuan_video.image_to_video",
]
"""Modules that the server imports before the first fork."""


def fork_context() -> Any:
    """The multiprocessing context whose processes are forked from the preloaded server."""
    context: Any = mp.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


@dataclass
class _Handler:
    """What the caller reads of torch's ``SubprocessHandler``."""

    process: BaseProcess
    _stdout: None = None
    _stderr: None = None

    @property
    def proc(self) -> _Handler:
        return self

    def poll(self) -> int | None:
        """The exit code, or None while it runs."""
        return self.process.exitcode


class ForkedRanks(SubprocessContext):
    """Stands in for what torch's ``start_processes`` returns.

    Args:
        args: The interpreter's arguments, by rank: ``-m`` and the module are the last two.
        envs: Additions to this process's environment, by rank.
        logs_specs: Where stdout and stderr go.
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
        """Kill all processes and wait for their end."""
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
    """Stands in for ``torch.distributed.elastic.multiprocessing.start_processes``."""
    return ForkedRanks(args, envs, logs_specs.reify(envs))


def _run(module: str, environment: dict[str, str], stdout: str, stderr: str) -> None:
    """Execute a module as ``python -m`` does, with an environment and log files of its own."""
    os.environ.clear()
    os.environ.update(environment)
    os.environ["LONGTAKE_PARENT"] = str(os.getppid())  # the server, not the engine
    for path, number in ((stdout, 1), (stderr, 2)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)
        os.close(file)
    runpy.run_module(module, run_name="__main__", alter_sys=True)
