"""Deadlines for a rank's next progress."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from longtake.configs.engine import EngineConfig
from longtake.engine.launch.protocol.deadlines import Deadlines
from longtake.pipelines.runtime.progress import Progress


@pytest.fixture
def deadlines(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Deadlines, list[float]]]:
    """Deadlines on a simulated clock, and the clock."""
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    yield (instance := Deadlines(EngineConfig(step_timeout_s=1800))), clock
    instance.pause()


def run(
    deadlines: tuple[Deadlines, list[float]], first: int, steps: int, step_s: float
) -> list[float | None]:
    instance, clock = deadlines
    allowed = [
        instance.progress(Progress("text")),
        instance.progress(Progress("denoising", first, 50)),
    ]
    for done in range(first + 1, first + 1 + steps):
        clock[0] += step_s
        allowed.append(instance.progress(Progress("denoising", done, 50)))
    return allowed[1:]


def test_measured_steps_set_the_deadline(
    deadlines: tuple[Deadlines, list[float]],
) -> None:
    assert run(deadlines, 0, 3, 1.0) == [1800, 1800, 60, 60]
    assert run(deadlines, 0, 3, 10.0) == [1800, 1800, 200, 200]


def test_a_resumed_video_is_timed_anew(deadlines: tuple[Deadlines, list[float]]) -> None:
    """The steps of a smaller video rendered before it do not count."""
    run(deadlines, 0, 9, 0.1)
    assert run(deadlines, 25, 3, 100.0) == [1800, 1800, 1800, 1800]
    assert run(deadlines, 25, 3, 5.0) == [1800, 1800, 100, 100]
