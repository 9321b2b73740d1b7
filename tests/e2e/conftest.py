"""What the tests of the command share."""

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
    """The ranks of other tests wait with threads that poll, which takes a core from these."""
    ranks.close()


@pytest.fixture(autouse=True)
def put_back_signals() -> Iterator[None]:
    """The command takes them for itself, and may run in this process."""
    taken = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers = {each: signal.getsignal(each) for each in taken}
    yield
    for each, handler in handlers.items():
        signal.signal(each, handler)


@pytest.fixture(scope="package", autouse=True)
def forked_ranks_by_default() -> Iterator[None]:
    """Fork the ranks that tests start in this process; commands of their own start new ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rank_processes, "start_processes", forked_ranks.start_processes)
        yield


@pytest.fixture(scope="module")
def new_ranks() -> Iterator[None]:
    """Ranks are new processes: for tests about their start, memory or command line."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rank_processes, "start_processes", start_processes)
        yield
