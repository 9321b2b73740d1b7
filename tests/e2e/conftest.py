"""What the tests of the command share."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def put_back_signals() -> Iterator[None]:
    """The command takes them for itself, and may run in this process."""
    taken = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers = {each: signal.getsignal(each) for each in taken}
    yield
    for each, handler in handlers.items():
        signal.signal(each, handler)
