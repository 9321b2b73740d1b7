"""Schedule of snapshots; reading, writing and checking of snapshot files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from longtake.configs.engine import EngineConfig
from longtake.configs.snapshot import SnapshotConfig
from longtake.engine.media.identity import Identity
from longtake.engine.media.snapshot import (
    UnusableSnapshotError,
    read_resume_state,
    read_snapshot,
    write_snapshot,
)
from longtake.errors import EngineError
from longtake.pipelines.loading.checkpoint import Checkpoint
from longtake.pipelines.runtime.snapshots import LoopState, Snapshots
from tests import tiny
from tests.rendering import request

ENGINE = EngineConfig(model="tiny", dtype="float32")


def identity(**changes: Any) -> Identity:
    return Identity.of(request(**changes), ENGINE, "a model")


def state(done: int = 2) -> LoopState:
    scheduler = {"sigmas": torch.linspace(1, 0, 4), "timesteps": torch.linspace(1000, 1, 3)}
    return LoopState(done, torch.randn(1, 4, 3, 4, 6), scheduler)


class Loop:
    """A denoising loop on a simulated clock."""

    def __init__(self, config: SnapshotConfig, cost_s: float, fails: bool = False) -> None:
        self.now, self._cost_s, self._fails = 0.0, cost_s, fails
        self.snapshots = Snapshots(config, 1000, self._write, lambda: self.now)
        self.snapshots.begin(0)
        self.saved_at: list[int] = []

    def _write(self, state: LoopState) -> None:
        self.now += self._cost_s
        if self._fails:
            raise EngineError("the disk is full")

    def run(self, steps: int, step_s: float) -> None:
        for done in range(1, steps + 1):
            self.now += step_s
            self.snapshots.wait()
            if self.snapshots.due(done):
                self.snapshots.save(lambda done=done: state(done))  # type: ignore[misc]
                self.snapshots.wait()  # immediately: the thread shares the clock
                self.saved_at.append(done)
        self.snapshots.close()


@pytest.mark.parametrize("cost_s", [0.001, 0.05, 2.0])
@pytest.mark.parametrize("step_s", [0.05, 1.0, 60.0])
def test_default_interval_costs_one_percent_of_the_time(cost_s: float, step_s: float) -> None:
    loop = Loop(SnapshotConfig(), cost_s)
    loop.run(400, step_s)
    assert loop.snapshots.blocked_s <= 0.01 * loop.now + cost_s  # the first one's cost is assumed
    assert loop.snapshots.num_written == len(loop.saved_at)
    affordable = 0.01 * 400 * step_s / cost_s
    assert len(loop.saved_at) >= min(400, affordable) // 2 - 2


@pytest.mark.parametrize("latents_bytes", [0, 10**9])
def test_first_snapshot_is_due_when_its_assumed_cost_is_one_percent(latents_bytes: int) -> None:
    """The assumed cost is 20 ms plus 1 s per 200 MB."""
    assumed_s = 0.02 + latents_bytes / 200e6
    times = iter((0, 99 * assumed_s, 101 * assumed_s))
    snapshots = Snapshots(SnapshotConfig(), latents_bytes, lambda state: None, lambda: next(times))
    snapshots.begin(0)
    assert [snapshots.due(1), snapshots.due(2)] == [False, True]
    snapshots.close()


@pytest.mark.parametrize("fails", [False, True])
def test_next_snapshot_is_due_when_the_measured_cost_is_affordable(fails: bool) -> None:
    """With steps of 1 s and snapshots of 0.1 s, the second is due after 20 s, then every 10 s."""
    loop = Loop(SnapshotConfig(), 0.1, fails)
    loop.run(50, 1.0)
    assert loop.saved_at == [3, 20, 30, 40, 50]  # the first by the assumed cost, 20 ms


def test_interval_in_steps_or_seconds() -> None:
    loop = Loop(SnapshotConfig(snapshot_steps=7), 0.5)
    loop.run(30, 1.0)
    assert loop.saved_at == [7, 14, 21, 28]
    loop = Loop(SnapshotConfig(snapshot_s=3.5), 0.0)
    loop.run(12, 1.0)
    assert loop.saved_at == [4, 8, 12]
    loop = Loop(SnapshotConfig(snapshot_steps=5, snapshot_s=2.5), 0.0)
    loop.run(9, 1.0)
    assert loop.saved_at == [3, 6, 9]


def test_failed_write_does_not_stop_the_loop() -> None:
    loop = Loop(SnapshotConfig(snapshot_steps=1), 0.0, fails=True)
    loop.run(3, 1.0)
    assert loop.snapshots.num_written == 0
    assert loop.snapshots.failure == "the disk is full"


def test_write_then_read(tmp_path: Path) -> None:
    path, saved = tmp_path / "x.snapshot.safetensors", state()
    assert read_snapshot(path) is None
    write_snapshot(path, identity(), saved)
    found = read_resume_state(path, identity(fps=30.0, decode="whole", output_type="latents"))
    assert found is not None
    assert found.steps_done == 2
    assert torch.equal(found.latents, saved.latents)
    assert found.scheduler.keys() == {"sigmas", "timesteps"}
    assert all(
        torch.equal(found.scheduler[name], saved.scheduler[name]) for name in found.scheduler
    )
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 4}, "another request: seed=4, not 3"),
        ({"prompt": "a dog"}, "another request: prompt='a dog', not "),
        ({"num_inference_steps": 9}, "another request: num_inference_steps=9, not 3"),
    ],
)
def test_snapshot_of_another_request_is_refused(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    path = tmp_path / "x"
    write_snapshot(path, identity(**changes), state())
    with pytest.raises(UnusableSnapshotError, match=words):
        read_resume_state(path, identity())


def test_snapshot_of_another_model_or_version_is_refused(tmp_path: Path) -> None:
    path, mine = tmp_path / "x", identity()
    for other, words in (
        (mine.model_copy(update={"model": "b"}), "another model, or other weights"),
        (mine.model_copy(update={"dtype": "bfloat16"}), "another dtype: bfloat16, not float32"),
        (
            mine.model_copy(update={"versions": {**mine.versions, "torch": "1.0"}}),
            "another version: torch 1.0, not ",
        ),
    ):
        write_snapshot(path, other, state())
        with pytest.raises(UnusableSnapshotError, match=words):
            read_resume_state(path, mine)


def test_a_snapshot_of_another_storage_is_refused(tmp_path: Path) -> None:
    stored = ENGINE.model_copy(update={"storage_dtype": "float8"})
    other = Identity.of(request(), stored, "a model")
    assert identity().dtype == "float32"  # as in the files of earlier versions
    for own, found, words in (
        (identity(), other, "another dtype: float32, stored as float8, not float32$"),
        (other, identity(), "another dtype: float32, not float32, stored as float8"),
    ):
        write_snapshot(tmp_path / "x", found, state())
        with pytest.raises(UnusableSnapshotError, match=words):
            read_resume_state(tmp_path / "x", own)


def test_damage_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x"
    write_snapshot(path, identity(), state())
    whole = path.read_bytes()
    for at in [0, 3, 8, 9, 40, *range(100, len(whole), 97), len(whole) - 1]:
        damaged = bytearray(whole)
        damaged[at] ^= 0x21
        path.write_bytes(damaged)
        with pytest.raises(UnusableSnapshotError):
            read_resume_state(path, identity())
    for length in (0, 7, 100, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(UnusableSnapshotError):
            read_snapshot(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(UnusableSnapshotError):
        read_snapshot(path)


def test_fingerprint_depends_on_content_only(model: str, tmp_path: Path) -> None:
    own = tiny.changed(Path(model), tmp_path / "own", "model_index.json", {})
    expected = Checkpoint.open(str(own)).fingerprint()
    copy = tiny.changed(Path(model), tmp_path / "copy", "model_index.json", {})
    assert Checkpoint.open(str(copy)).fingerprint() == expected
    weights = copy / "transformer" / "diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1  # in the last tensor, which is small
    weights.unlink()
    weights.write_bytes(content)
    assert Checkpoint.open(str(copy)).fingerprint() != expected
    weights.write_bytes(b"nonsense")
    with pytest.raises(Exception, match="cannot be read"):
        Checkpoint.open(str(copy)).fingerprint()


def test_the_version_of_a_familys_package_is_part_of_the_identity() -> None:
    earlier, later = (
        Identity.of(request(), ENGINE, "a model", {"a-family": version})
        for version in ("1.0", "2.0")
    )
    assert earlier.difference_from(earlier) == ""
    assert earlier.difference_from(later) == "another version: a-family 2.0, not 1.0"
