"""longtake verify on ranks in processes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from longtake.configs.engine import EngineConfig
from longtake.engine.job import JobRun
from longtake.engine.launch import local_processes
from longtake.engine.launch.launcher import Launcher
from longtake.engine.launch.local_processes import LocalProcesses
from longtake.engine.rank_report import RankReport
from longtake.pipelines.runtime.progress import OnProgress

Verify = Callable[..., tuple[int, str, str]]


class SharedRanks(Launcher):
    """Two ranks that tests share, since starting them takes longest."""

    def __init__(self) -> None:
        self._processes: LocalProcesses | None = None
        self._started = False

    def __call__(self, config: EngineConfig, device_type: str, scratch: None) -> Launcher:
        """Replaces the constructor of LocalProcesses: returns this launcher."""
        assert config.devices == 2
        self._processes = self._processes or LocalProcesses(config, device_type)
        return self

    def start(self, on_progress: OnProgress, *rest: Any) -> None:
        assert self._processes is not None
        if not self._started:
            self._processes.start(on_progress)
            self._started = True

    def render(self, run: JobRun) -> list[RankReport]:
        assert self._processes is not None
        return self._processes.render(run)

    def close(self) -> None:
        pass

    def end(self) -> None:
        if self._processes is not None:
            self._processes.close()


@pytest.fixture(scope="module")
def shared_ranks() -> Iterator[SharedRanks]:
    shared = SharedRanks()
    yield shared
    shared.end()


@pytest.fixture
def run_verify(model: str, run_command: Verify) -> Verify:
    """Run verify in this process; returns exit code, stdout, stderr."""
    return lambda *arguments: run_command("verify", "--model", model, *arguments)


@pytest.fixture
def verify(
    run_verify: Verify, shared_ranks: SharedRanks, monkeypatch: pytest.MonkeyPatch
) -> Verify:
    """Run the command on the shared ranks."""
    monkeypatch.setattr(local_processes, "LocalProcesses", shared_ranks)
    return run_verify


def test_all_layouts_of_two_ranks_are_verified(verify: Verify) -> None:
    code, out, err = verify("--devices", "2")
    assert code == 0
    first, _, *rows, last = out.splitlines()
    assert first.endswith("9 frames of 80x48 in 3 steps, seed 0")
    assert [row.split()[0] for row in rows] == ["1x1x2", "1x2x1", "2x1x1"]
    assert all(row.endswith(" -") for row in rows)
    assert last.startswith("all within 0.0001 after every step")
    for done in (6, 9):  # steps of two requests on one rank, of three layouts on two
        assert f"denoising {done}/{done}, " in err
    assert verify("--devices", "2", "--layout", "1x2", "--quiet") == (0, "", "")


def test_rounding_exceeds_a_tolerance_of_zero(verify: Verify) -> None:
    code, out, err = verify(
        "a dog", "--devices", "2", "--layout", "2x1", "--tolerance", "0", "--seed", "4", "--json"
    )
    assert (code, err) == (1, "")
    found = json.loads(out)
    (layout,) = found["layouts"]
    assert (found["within"], found["tolerance"], found["engine"]["devices"]) == (False, 0, 2)
    assert (layout["layout"], layout["request"]["prompt"]) == ("1x2x1", "a dog")
    assert (layout["request"]["seed"], layout["attention_kernel"]) == (4, "cpu-flash")
    assert 0 < layout["max_error"] < 1e-4
    assert layout["psnr_db"] > 100
    assert layout["max_error"] == max(each["max_error"] for each in layout["steps"])
    assert layout["parting"]["num_blocks"] == 4
    assert layout["parting"]["name"].startswith("transformer.")


def test_failing_ranks_are_reported(run_verify: Verify) -> None:
    code, out, err = run_verify("--devices", "2", "--load-timeout-s", "0.01", "--quiet")
    assert (code, out) == (3, "")
    assert err.startswith("longtake: rank ")


REFUSED = {
    "ranks": (["--layout", "2x2"], "layout=1x2x2 needs 4 ranks, got devices=2: try devices=4, or"),
    "notation": (["--layout", "1x2", "2by1"], "layout='2by1' must be RINGxULYSSES or CFGxRING"),
    "one branch": (
        ["--layout", "2x1x1", "--true-cfg-scale", "1"],
        "layout=2x1x1: without classifier-free guidance there is no second pass",
    ),
    "tolerance": (["--tolerance", "-1"], "tolerance='-1' must be at least 0"),
    "size": (["--height", "40"], "height=40 must be a multiple of 16: try 32 or 48"),
    "kernel": (["--attention-kernel", "magic"], "attention_kernel='magic' is unknown"),
    "blank": ([" "], "prompt=' ' must not be blank"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_line_before_anything_starts(verify: Verify, name: str) -> None:
    arguments, text = REFUSED[name]
    code, out, err = verify("--devices", "2", *arguments)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert text in err


def test_torchrun_is_refused(verify: Verify, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, out, err = verify()
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert "run it without torchrun, with --devices" in err
