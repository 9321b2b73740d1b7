"""What becomes of a group of ranks whose devices fail, one or all; without any ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from longtake.configs.engine import EngineConfig
from longtake.configs.parallel import ParallelConfig
from longtake.engine import supervisor
from longtake.engine.sinks import NullSink
from longtake.engine.supervisor import Supervisor
from longtake.errors import EngineError, LayoutError, RankError, Stopped
from tests.rendering import request


class Engine:
    """Stands in for a VideoEngine: its devices fail as a test says."""

    dying_at_start: dict[int, int] = {}
    """Starts that a device has yet to spoil."""
    dying_at_work: list[int | None] = []
    """The device that fails in each rendering."""
    made: list[EngineConfig] = []

    def __init__(self, config: EngineConfig, *, isolated: bool, scratch: Path) -> None:
        assert isolated
        if config.parallel.ulysses_degree not in (None, config.devices):
            raise LayoutError("the degrees do not fit")
        self.config = config
        self.made.append(config)
        self.closed = False
        self.running = False

    def start(self, on_progress: Any, stop_requested: Any) -> None:
        for rank, device in enumerate(self.config.devices_by_rank):
            if self.dying_at_start.get(device, 0) > 0:
                self.dying_at_start[device] -= 1
                raise died(rank, "starting")

    def render(self, asked: Any, sink: Any, on_progress: Any, **rest: Any) -> str:
        device = self.dying_at_work.pop(0) if self.dying_at_work else None
        if device is not None:
            raise died(self.config.devices_by_rank.index(device), "denoising")
        return "rendered"

    def close(self) -> None:
        self.closed = True


def died(rank: int | None, phase: str) -> RankError:
    error = RankError(f"rank {rank} was killed")
    error.rank, error.phase = rank, phase
    return error


@pytest.fixture
def supervised(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.setattr(supervisor, "VideoEngine", Engine)
    Engine.dying_at_start, Engine.dying_at_work, Engine.made = {}, [], []

    def make(**settings: Any) -> tuple[Supervisor, list[str]]:
        said: list[str] = []
        config = EngineConfig(**settings)
        return Supervisor(config, tmp_path, said.append, lambda seconds: None), said

    return make


def render(group: Supervisor, seed: int = 0) -> Any:
    return group.render(request(seed=seed), NullSink(), lambda progress: None)


def test_a_start_that_fails_once_is_made_again(supervised: Any) -> None:
    group, said = supervised(devices=4)
    Engine.dying_at_start = {2: 1}
    assert render(group) == "rendered"
    assert group.devices == (0, 1, 2, 3)
    assert said == ["the ranks did not start: rank 2 was killed"]


def test_a_device_that_fails_at_every_start_is_left_out(supervised: Any) -> None:
    group, said = supervised(devices=4, parallel=ParallelConfig(ulysses_degree=4))
    Engine.dying_at_start = {2: 99}
    assert render(group) == "rendered"
    assert group.devices == (0, 1, 3)
    assert Engine.made[-1].device_ids == (0, 1, 3)
    assert Engine.made[-1].parallel.ulysses_degree is None  # 4 fits no three
    assert said[-1] == "device 2 is left out: it failed again and again; 3 are left"


def test_two_devices_can_be_left_out_and_the_last_one_cannot(supervised: Any) -> None:
    group, said = supervised(devices=3, device_ids=(4, 5, 6))
    Engine.dying_at_start = {4: 99, 6: 99}
    assert render(group) == "rendered"
    assert group.devices == (5,)
    assert said[-1] == "device 6 is left out: it failed again and again; 1 is left"
    Engine.dying_at_start[5] = 99
    with pytest.raises(EngineError, match="no ranks can be started: rank 0 was killed"):
        render(group)


def test_faults_of_no_one_device_end_it(supervised: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    group, said = supervised(devices=2)

    def fail(self: Any, *rest: Any) -> None:
        raise died(None, "")

    monkeypatch.setattr(Engine, "start", fail)
    with pytest.raises(EngineError, match="no ranks can be started"):
        render(group)
    assert len(said) == 3


def test_a_device_that_fails_whatever_it_renders_is_left_out(supervised: Any) -> None:
    group, _ = supervised(devices=2)
    Engine.dying_at_work = [1, 1, 1, None]
    for seed in (1, 2, 3):
        with pytest.raises(RankError):
            render(group, seed)
    assert render(group, 2) == "rendered"
    assert group.devices == (0,)


@pytest.mark.parametrize("devices", [[1, 0, 1, 1], [1, 1, None, 1], [0, 1, 0, 1]])
def test_devices_that_fail_now_and_then_stay(supervised: Any, devices: list[int | None]) -> None:
    group, _ = supervised(devices=2)
    Engine.dying_at_work = list(devices)
    for seed, device in enumerate(devices):
        if device is None:
            render(group, seed)
        else:
            with pytest.raises(RankError):
                render(group, seed)
    assert group.devices == (0, 1)


def test_a_request_that_kills_the_same_rank_costs_no_device(supervised: Any) -> None:
    group, _ = supervised(devices=2)
    Engine.dying_at_work = [0] * 6
    for number in range(6):  # nor do two
        with pytest.raises(RankError):
            render(group, number % 2)
    assert group.devices == (0, 1)


def test_ranks_that_were_killed_as_asked_are_no_fault(
    supervised: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a device's nor one that is counted, however many videos are cancelled."""
    group, said = supervised(devices=2)

    def killed(self: Any, *rest: Any, **more: Any) -> None:
        raise Stopped("it was told to stop")

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "render", killed)
        for seed in range(5):
            with pytest.raises(Stopped):
                render(group, seed)
    with pytest.raises(Stopped):
        group.start(lambda progress: None, lambda: True)
    assert render(group) == "rendered"
    assert (group.starts, group.devices, said) == (1, (0, 1), [])
