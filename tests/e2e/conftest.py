"""Fixtures of the end-to-end tests."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
from torch.distributed.elastic.multiprocessing import start_processes

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
