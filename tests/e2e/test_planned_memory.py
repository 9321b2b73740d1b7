"""Planned memory against the memory that new processes take."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from longtake import ParallelConfig, VideoEngine, VideoRequest
from longtake.cli import main as cli
from longtake.configs.hardware import Figure, load_hardware
from longtake.engine.tools.bench import measures
from longtake.engine.tools.trial import on_ranks

pytestmark = pytest.mark.usefixtures("new_ranks")


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The CPU profile with the memory that a process takes here before it loads a model."""
    held = on_ranks(measures.runtime, 1, "cpu", 120, dtype="float32")[0]["bytes"]
    own = {"runtime_bytes": Figure(value=held, source="measured by this test")}
    path = tmp_path_factory.mktemp("profile") / "cpu.yaml"
    hardware = load_hardware("cpu").model_copy(update=own)
    path.write_text(yaml.safe_dump(hardware.model_dump(mode="json")))
    return path


def planned(capsys: Any, profile: Path, layout: str, request: dict[str, Any]) -> int:
    capsys.readouterr()
    sizes = [f"--{name.replace('_', '-')}={value}" for name, value in request.items()]
    assert cli.main(["plan", "--json", f"--gpu={profile}", "--devices=2", *sizes]) == 0
    layouts = json.loads(capsys.readouterr().out)["layouts"]
    (found,) = (each for each in layouts if each["name"] == layout)
    return int(found["memory_bytes_per_rank"])


@pytest.mark.parametrize(("layout", "degrees"), [("1x1x2", (1, 2)), ("1x2x1", (2, 1))])
def test_peak_memory_of_ranks(
    capsys: pytest.CaptureFixture[str], profile: Path, layout: str, degrees: tuple[int, int]
) -> None:
    """A small and a larger video, within 20 %."""
    ring, ulysses = degrees
    parallel = ParallelConfig(ring_degree=ring, ulysses_degree=ulysses)
    steps: dict[str, Any] = {"num_inference_steps": 1}
    tiles = {"height": 160, "width": 160, "num_frames": 17, **steps}
    with VideoEngine.from_pretrained("demo", devices=2, parallel=parallel) as engine:
        for request in (steps, tiles):
            video = engine.generate(VideoRequest(prompt="a red circle", seed=0, **request))
            measured = video.metadata.ranks[0].peak_memory_bytes
            foreseen = planned(capsys, profile, layout, request)
            assert foreseen == pytest.approx(measured, rel=0.2), request
