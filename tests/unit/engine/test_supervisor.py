"""Restarts and exclusion of failing devices, with a simulated engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from longtake.configs.engine import EngineConfig
from longtake.configs.parallel import ParallelConfig
from longtake.engine import supervisor
from longtake.engine.media.sinks import NullSink
from longtake.engine.supervisor import Supervisor
from longtake.errors import EngineError, LayoutError, RankError, Stopped
from tests.rendering import request

KNOWN = [request()]


class Engine:
    """A VideoEngine whose devices fail when a test says so."""

    failing_starts: dict[int, int] = {}
    """Number of starts that still fail, by device."""
    failing_renders: list[int | None] = []
    """The device that fails in each rendering; None: no device."""
    created: list[EngineConfig] = []
    placed_for: list[Any] = []

    def __init__(self, config: EngineConfig, *, isolated: bool, scratch: Path) -> None:
        assert isolated
        if config.parallel.ulysses_degree not in (None, config.devices):
            raise LayoutError("the degrees do not fit")
        self.config = config
        self.created.append(config)
        self.closed = False
        self.running = False

    def place_weights(self, requests: Any, *, engines: int) -> None:
        assert engines == 1
        self.placed_for.append(requests)

    def start(self, on_progress: Any, stop_requested: Any) -> None:
        for rank, device in enumerate(self.config.devices_by_rank):
            if self.failing_starts.get(device, 0) > 0:
                self.failing_starts[device] -= 1
                raise rank_error(rank, "starting")

    def render(self, resolved: Any, sink: Any, on_progress: Any, **rest: Any) -> str:
        device = self.failing_renders.pop(0) if self.failing_renders else None
        if device is not None:
            raise rank_error(self.config.devices_by_rank.index(device), "denoising")
        return "rendered"

    def close(self) -> None:
        self.closed = True


def rank_error(rank: int | None, phase: str) -> RankError:
    error = RankError(f"rank {rank} was killed")
    error.rank, error.phase = rank, phase
    return error


@pytest.fixture
def make_supervisor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.setattr(supervisor, "VideoEngine", Engine)
    Engine.failing_starts, Engine.failing_renders, Engine.created = {}, [], []
    Engine.placed_for = []

    def make(**settings: Any) -> tuple[Supervisor, list[str]]:
        lines: list[str] = []
        config = EngineConfig(**settings)
        return Supervisor(config, tmp_path, lines.append, lambda seconds: None, KNOWN), lines

    return make


def render(group: Supervisor, seed: int = 0) -> Any:
    return group.render(request(seed=seed), NullSink(), lambda progress: None)


def test_a_start_that_fails_once_is_repeated(make_supervisor: Any) -> None:
    group, lines = make_supervisor(devices=4)
    Engine.failing_starts = {2: 1}
    assert render(group) == "rendered"
    assert group.devices == (0, 1, 2, 3)
    assert lines == ["the ranks did not start: rank 2 was killed"]


def test_a_device_that_fails_at_every_start_is_excluded(make_supervisor: Any) -> None:
    group, lines = make_supervisor(devices=4, parallel=ParallelConfig(ulysses_degree=4))
    Engine.failing_starts = {2: 99}
    assert render(group) == "rendered"
    assert group.devices == (0, 1, 3)
    assert Engine.created[-1].device_ids == (0, 1, 3)
    assert Engine.placed_for == [KNOWN, KNOWN]  # whenever an engine is made
    assert Engine.created[-1].parallel.ulysses_degree is None  # 4 does not fit 3 devices
    assert lines[-1] == "device 2 is excluded: it failed repeatedly; 3 are left"


def test_all_devices_but_the_last_can_be_excluded(make_supervisor: Any) -> None:
    group, lines = make_supervisor(devices=3, device_ids=(4, 5, 6))
    Engine.failing_starts = {4: 99, 6: 99}
    assert render(group) == "rendered"
    assert group.devices == (5,)
    assert lines[-1] == "device 6 is excluded: it failed repeatedly; 1 is left"
    Engine.failing_starts[5] = 99
    with pytest.raises(EngineError, match="no ranks can be started: rank 0 was killed"):
        render(group)


def test_starts_that_fail_without_a_culprit_give_up(
    make_supervisor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    group, lines = make_supervisor(devices=2)

    def fail(self: Any, *rest: Any) -> None:
        raise rank_error(None, "")

    monkeypatch.setattr(Engine, "start", fail)
    with pytest.raises(EngineError, match="no ranks can be started"):
        render(group)
    assert len(lines) == 3


def test_a_device_that_fails_with_several_requests_is_excluded(make_supervisor: Any) -> None:
    group, _ = make_supervisor(devices=2)
    Engine.failing_renders = [1, 1, 1, None]
    for seed in (1, 2, 3):
        with pytest.raises(RankError):
            render(group, seed)
    assert render(group, 2) == "rendered"
    assert group.devices == (0,)


@pytest.mark.parametrize("devices", [[1, 0, 1, 1], [1, 1, None, 1], [0, 1, 0, 1]])
def test_devices_that_fail_occasionally_are_kept(
    make_supervisor: Any, devices: list[int | None]
) -> None:
    group, _ = make_supervisor(devices=2)
    Engine.failing_renders = list(devices)
    for seed, device in enumerate(devices):
        if device is None:
            render(group, seed)
        else:
            with pytest.raises(RankError):
                render(group, seed)
    assert group.devices == (0, 1)


def test_one_fatal_request_excludes_no_device(make_supervisor: Any) -> None:
    group, _ = make_supervisor(devices=2)
    Engine.failing_renders = [0] * 6
    for number in range(6):  # two requests are not enough either
        with pytest.raises(RankError):
            render(group, number % 2)
    assert group.devices == (0, 1)


def test_a_requested_stop_is_not_a_fault(
    make_supervisor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many renderings are stopped, no device is excluded and no start is counted."""
    group, lines = make_supervisor(devices=2)

    def killed(self: Any, *rest: Any, **more: Any) -> None:
        raise Stopped("stop requested")

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "render", killed)
        for seed in range(5):
            with pytest.raises(Stopped):
                render(group, seed)
    with pytest.raises(Stopped):
        group.start(lambda progress: None, lambda: True)
    assert render(group) == "rendered"
    assert (group.starts, group.devices, lines) == (1, (0, 1), [])
