"""What all tests share."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from tests import tiny
from tests.ranks import RankGroups

# What a shell runs in the background ignores Ctrl-C, what nohup runs ignores hang-ups, and so would
# every command started here.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session")
def ranks() -> Iterator[RankGroups]:
    """Groups of ranks, started once a world size: ``ranks.run(world_size, function, *args)``."""
    groups = RankGroups()
    yield groups
    groups.close()


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a tiny HunyuanVideo, with defaults of its own."""
    return str(tiny.save(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture(scope="session")
def animators(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders of tiny models that animate pictures, by the way in which they take them."""
    folder = tmp_path_factory.mktemp("animators")
    return {
        name: str(tiny.save_image_to_video(folder / name, name))
        for name in ("token_replace", "latent_concat")
    }
