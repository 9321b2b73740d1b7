"""Fixtures of all tests."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from functools import cache

import pytest
from hypothesis import settings

from tests import tiny, tiny_wan
from tests.ranks import RankGroups

# A shell makes its background jobs ignore SIGINT, and nohup SIGHUP: commands that tests start would
# inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

settings.register_profile("longtake", deadline=None)  # a busy machine is no failure
settings.load_profile("longtake")


@pytest.fixture(scope="session")
def ranks() -> Iterator[RankGroups]:
    """One group of ranks per world size: ``ranks.run(world_size, function, *args)``."""
    groups = RankGroups()
    yield groups
    groups.close()


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a tiny HunyuanVideo with its own defaults."""
    return str(tiny.save(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture(scope="session")
def animators(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders of tiny image-to-video models, by their kind of conditioning."""
    folder = tmp_path_factory.mktemp("animators")
    return {
        name: str(tiny.save_image_to_video(folder / name, name))
        for name in ("token_replace", "latent_concat")
    }


@pytest.fixture(scope="session")
def wan(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Folder of a tiny Wan by its kind, a name in :data:`tiny_wan.KINDS`; saved on first use."""
    folder = tmp_path_factory.mktemp("wan")
    return cache(lambda kind: str(tiny_wan.save(folder / kind, kind)))
