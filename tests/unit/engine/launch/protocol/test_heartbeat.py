"""How long the engine considers a rank silent."""

from __future__ import annotations

from longtake.engine.launch.protocol.heartbeat import HeartbeatMonitor


def test_silence_is_counted_by_rank() -> None:
    monitor = HeartbeatMonitor(2)
    assert monitor.silent_s({}, 0.0) == {}
    for second in range(1, 9):
        heartbeats = {0: str(second).encode(), 1: b"1"}
        silent = monitor.silent_s(heartbeats, float(second))
    assert silent == {0: 0.0, 1: 7.0}
    assert monitor.silent_s({0: b"8", 1: b"2"}, 8.5) == {0: 0.5, 1: 0.0}


def test_an_engine_that_was_suspended_itself_blames_no_rank() -> None:
    """For example for an hour, together with its ranks."""
    monitor = HeartbeatMonitor(1)
    monitor.silent_s({0: b"1"}, 0.0)
    assert monitor.silent_s({0: b"1"}, 3600.0) == {0: 1.0}
    assert monitor.silent_s({0: b"2"}, 3600.2) == {0: 0.0}
