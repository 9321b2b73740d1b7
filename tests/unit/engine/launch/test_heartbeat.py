"""For how long a rank has given no sign of life, as its engine sees it."""

from __future__ import annotations

from longtake.engine.launch.heartbeat import Heartbeats


def test_silence_is_counted_by_rank() -> None:
    signs = Heartbeats(2)
    assert signs.silent({}, 0.0) == {}
    for second in range(1, 9):
        beats = {0: str(second).encode(), 1: b"1"}
        silent = signs.silent(beats, float(second))
    assert silent == {0: 0.0, 1: 7.0}
    assert signs.silent({0: b"8", 1: b"2"}, 8.5) == {0: 0.5, 1: 0.0}


def test_an_engine_that_stood_still_itself_blames_nobody() -> None:
    """It was suspended for an hour, and its ranks with it, say."""
    signs = Heartbeats(1)
    signs.silent({0: b"1"}, 0.0)
    assert signs.silent({0: b"1"}, 3600.0) == {0: 1.0}
    assert signs.silent({0: b"2"}, 3600.2) == {0: 0.0}
