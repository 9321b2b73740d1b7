"""What a host moves to its swap during a video is measured, and told to the user."""

from __future__ import annotations

from types import SimpleNamespace

import psutil
import pytest

from longtake.configs.engine import EngineConfig
from longtake.configs.request import ResolvedDecode
from longtake.engine.memory_use import swapped_bytes
from longtake.engine.metadata import Metadata
from longtake.engine.rank_report import RankReport
from longtake.parallel import ParallelDims

REQUEST = ResolvedDecode(height=8, width=8, num_frames=1, fps=8, decode="whole")


def warnings_after(*swapped: int) -> list[str]:
    """The warnings of a video during which the hosts of some ranks swapped."""
    ranks = [
        RankReport(rank, "cpu", "", {}, {}, 1, 0, swapped_bytes=num_bytes)
        for rank, num_bytes in enumerate(swapped)
    ]
    dims = ParallelDims(ulysses_degree=len(ranks))
    return Metadata(REQUEST, EngineConfig(), dims, {}, ranks, 1).warnings()


def test_swapped_bytes_count_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "swap_memory", lambda: SimpleNamespace(sin=3, sout=4))
    assert swapped_bytes() == 7


def test_a_host_that_swaps_is_told() -> None:
    (warning,) = warnings_after(0, 3 * 2**30)
    assert warning.startswith("the host moved 3.0 GiB between memory and swap")
    assert "--weights disk" in warning


def test_a_little_is_not_told() -> None:
    assert warnings_after(0, 2**20) == []
