"""What imports with paused garbage collection leave behind."""

from __future__ import annotations

import gc
import sys
import weakref
from pathlib import Path

import pytest

from longtake.imports import garbage_collection_paused

KEEPS_FRAMES = """
try:
    raise ImportError
except ImportError as error:
    cycle = [error]
    error.cycle = cycle
    del cycle
"""


class Local:
    """Stands for a caller's variable."""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module that leaves a cycle with the frames of those that import it."""
    (tmp_path / "keeps_frames.py").write_text(KEEPS_FRAMES)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "keeps_frames", raising=False)
    return "keeps_frames"


def import_it(module: str) -> weakref.ref[Local]:
    local = Local()
    with garbage_collection_paused():
        assert not gc.isenabled()
        __import__(module)
    return weakref.ref(local)


def test_frames_of_importers_are_not_frozen(module: str) -> None:
    try:
        local = import_it(module)
        assert gc.isenabled()
        assert gc.get_freeze_count() > 0
        gc.collect()
        assert local() is None
    finally:
        gc.unfreeze()


def test_nothing_is_frozen_if_nothing_is_imported() -> None:
    gc.unfreeze()
    local = import_it("json")
    assert gc.get_freeze_count() == 0
    assert local() is None
