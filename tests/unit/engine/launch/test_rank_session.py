"""The ranks of an engine: started on first use, restarted after they ended, one job at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from longtake.configs.engine import EngineConfig
from longtake.configs.request import ResolvedDecode
from longtake.engine.engine import VideoEngine
from longtake.engine.job import Job, JobInputs, JobRun
from longtake.engine.launch.launcher import Launcher
from longtake.engine.launch.rank_session import RankSession
from longtake.engine.media.sinks import NullSink
from longtake.engine.rank_report import RankReport
from longtake.errors import RankError, RequestError
from longtake.parallel import ParallelDims
from longtake.pipelines.runtime.progress import Progress

REPORT = RankReport(0, "cpu", "none", {}, {}, 1, 0)
REQUEST = ResolvedDecode(fps=8, decode="whole", num_frames=9, height=32, width=48)


class FakeLauncher(Launcher):
    """Ranks that do nothing, or die in each job."""

    def __init__(self, dies: bool = False) -> None:
        self.calls: list[str] = []
        self._dies = dies

    @property
    def alive(self) -> bool:
        return not self._dies

    def start(self, *args: Any) -> None:
        self.calls.append("start")

    def render(self, run: JobRun) -> list[RankReport]:
        self.calls.append("render")
        run.on_progress(Progress("decoding"))
        if self._dies:
            raise RankError("rank 0 died")
        return [REPORT]

    def close(self) -> None:
        self.calls.append("close")


def prepare() -> tuple[Job, JobInputs]:
    """A job, and no arrays."""
    return Job.of(REQUEST, ParallelDims(), inputs=["latents"]), {}


def run(session: RankSession, on_progress: Callable[[Progress], None] = lambda _: None) -> None:
    """Run one job."""
    _, reports = session.run(prepare, NullSink(), on_progress)
    assert reports == [REPORT]


def test_ranks_are_started_once_and_closed_once() -> None:
    launcher = FakeLauncher()
    session = RankSession(lambda: launcher)
    assert not session.running
    run(session)
    run(session)
    assert session.running
    session.close()
    session.close()
    assert not session.running
    assert launcher.calls == ["start", "render", "render", "close"]


def test_ranks_that_died_are_replaced() -> None:
    launchers = [FakeLauncher(dies=True), FakeLauncher()]
    session = RankSession(iter(launchers).__next__)
    with pytest.raises(RankError, match="rank 0 died"):
        run(session)
    assert not session.running
    run(session)
    assert [each.calls for each in launchers] == [["start", "render", "close"], ["start", "render"]]


def test_a_refusal_leaves_the_ranks_running() -> None:
    launcher = FakeLauncher()
    session = RankSession(lambda: launcher)

    def refuse() -> tuple[Job, JobInputs]:
        raise RequestError("no such picture")

    with pytest.raises(RequestError, match="no such picture"):
        session.run(refuse, NullSink(), lambda _: None)
    with pytest.raises(RequestError, match="not on rank 0"):
        session.refuse(RequestError("not on rank 0"), lambda _: None)
    run(session)
    assert launcher.calls == ["start", "render"]


def test_a_callback_may_not_run_a_job() -> None:
    session = RankSession(FakeLauncher)
    with pytest.raises(RequestError, match="called from its own callback"):
        run(session, lambda progress: run(session))
    run(session)


def test_an_engine_uses_the_launcher_that_it_is_given() -> None:
    launcher = FakeLauncher()
    made: list[tuple[str, str]] = []

    def factory(config: EngineConfig, device_type: str) -> Launcher:
        made.append((config.model, device_type))
        return launcher

    config = EngineConfig(model="demo", device="cpu", devices=4)
    with VideoEngine(config, launcher_factory=factory) as engine:
        assert made == []
        metadata = engine.decode_into(NullSink(), REQUEST, None)
    assert made == [("demo", "cpu")]
    assert metadata.layout.ulysses_degree == 4
    assert launcher.calls == ["start", "render", "close"]
