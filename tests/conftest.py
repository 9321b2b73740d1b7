"""What all tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.ranks import RankGroups


@pytest.fixture(scope="session")
def ranks() -> Iterator[RankGroups]:
    """Groups of ranks, started once a world size: ``ranks.run(world_size, function, *args)``."""
    groups = RankGroups()
    yield groups
    groups.close()
