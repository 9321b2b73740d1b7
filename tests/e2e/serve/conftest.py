"""The server that the tests of this folder share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.serving import Server, serving


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The demo model on two ranks, with short timeouts."""
    arguments = ["--devices", "2", "--longest-s", "2000", "--request-timeout-s", "3"]
    arguments += ["--stop-timeout-s", "3"]
    with serving(tmp_path_factory.mktemp("serve"), *arguments) as running:
        yield running
