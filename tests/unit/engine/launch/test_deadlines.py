"""How long a rank may take for its next progress."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from longtake.configs.engine import EngineConfig
from longtake.engine.launch.deadlines import Deadlines
from longtake.pipelines.progress import Progress


@pytest.fixture
def deadlines(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Deadlines, list[float]]]:
    """Of a rank whose clock is the test's, and that clock."""
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    yield (made := Deadlines(EngineConfig(step_timeout_s=1800))), clock
    made.pause()


def run(
    deadlines: tuple[Deadlines, list[float]], first: int, steps: int, step_s: float
) -> list[float | None]:
    made, clock = deadlines
    allowed = [made.progress(Progress("text")), made.progress(Progress("denoising", first, 50))]
    for done in range(first + 1, first + 1 + steps):
        clock[0] += step_s
        allowed.append(made.progress(Progress("denoising", done, 50)))
    return allowed[1:]


def test_steps_that_were_timed_set_the_deadline(
    deadlines: tuple[Deadlines, list[float]],
) -> None:
    assert run(deadlines, 0, 3, 1.0) == [1800, 1800, 60, 60]
    assert run(deadlines, 0, 3, 10.0) == [1800, 1800, 200, 200]


def test_a_video_that_goes_on_is_timed_anew(deadlines: tuple[Deadlines, list[float]]) -> None:
    """A small one was rendered before it: its steps say nothing of these."""
    run(deadlines, 0, 9, 0.1)
    assert run(deadlines, 25, 3, 100.0) == [1800, 1800, 1800, 1800]
    assert run(deadlines, 25, 3, 5.0) == [1800, 1800, 100, 100]
