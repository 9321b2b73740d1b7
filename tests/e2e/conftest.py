"""What the tests of the command share."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

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
