"""Fixtures of the end-to-end tests."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator

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


Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run_command(capsys: pytest.CaptureFixture[str]) -> Command:
    """Run a command in this process; returns exit code, stdout, stderr."""

    def run(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = cli.main([str(word) for word in words])
        return (code, *capsys.readouterr())

    return run


@pytest.fixture
def generate(model: str, run_command: Command) -> Command:
    """Run generate in this process, on one rank; returns exit code, stdout, stderr."""
    return lambda *arguments: run_command("generate", *arguments, "--model", model)


@pytest.fixture
def longtake(model: str, run_command: Command) -> Command:
    """Run a command with a model, the tiny one by default; returns exit code, stdout, stderr."""

    def run(*words: object) -> tuple[int, str, str]:
        return run_command(*words) if "--model" in words else run_command(*words, "--model", model)

    return run
