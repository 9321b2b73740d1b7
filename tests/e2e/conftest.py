"""Fixtures of the end-to-end tests."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from torch.distributed.elastic.multiprocessing import start_processes

from longtake.cli import main as cli
from longtake.engine.launch import rank_processes
from tests import forked_ranks
from tests.ranks import RankGroups


@pytest.fixture(scope="package", autouse=True)
def no_idle_ranks(ranks: RankGroups) -> None:
    """End the ranks of other tests: their threads poll, which takes up a core."""
    ranks.close()


@pytest.fixture(autouse=True)
def restored_signals() -> Iterator[None]:
    """Restore the handlers that a command sets when it runs in this process."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers = {each: signal.getsignal(each) for each in numbers}
    yield
    for each, handler in handlers.items():
        signal.signal(each, handler)


@pytest.fixture(scope="package", autouse=True)
def forked_ranks_by_default() -> Iterator[None]:
    """Fork the ranks that this process starts; commands in subprocesses start new interpreters."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rank_processes, "start_processes", forked_ranks.start_processes)
        yield


@pytest.fixture(scope="module")
def new_ranks() -> Iterator[None]:
    """Ranks are new interpreters: for tests of their start, memory or command line."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rank_processes, "start_processes", start_processes)
        yield


@pytest.fixture
def generate(model: str, tmp_path: Path, capsys: Any) -> Callable[..., tuple[int, str, str]]:
    """Run the command in this process, on one rank; returns exit code, stdout, stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = cli.main(["generate", *arguments, "--model", model])
        return (code, *capsys.readouterr())

    return run


@pytest.fixture
def longtake(model: str, capsys: Any) -> Callable[..., tuple[int, str, str]]:
    """Run a command in this process; returns exit code, stdout, stderr."""

    def run(command: str, *arguments: Any) -> tuple[int, str, str]:
        capsys.readouterr()
        words = [command, *map(str, arguments)]
        code = cli.main(words if "--model" in words else [*words, "--model", model])
        return (code, *capsys.readouterr())

    return run
