"""Planned memory against the memory that new processes take."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from longtake import ParallelConfig, VideoEngine, VideoRequest
from longtake.cli import main as cli
from longtake.configs.engine import EngineConfig
from longtake.configs.hardware import Figure, load_hardware
from longtake.engine.tools.bench import measures
from longtake.engine.tools.trial import on_ranks
from tests import tiny

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


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose transformer takes 0.43 GiB, in blocks of at most 36 MiB."""
    shape: dict[str, Any] = dict(
        num_attention_heads=8, attention_head_dim=64, rope_axes_dim=(16, 24, 24)
    )
    folder = tmp_path_factory.mktemp("wide") / "model"
    return tiny.save(folder, num_layers=6, num_single_layers=14, **shape)


@pytest.mark.parametrize(("weights", "devices"), [("disk", 2), ("streamed", 2)])
def test_peak_memory_with_weights_elsewhere(
    capsys: pytest.CaptureFixture[str], profile: Path, wide: Path, weights: str, devices: int
) -> None:
    """All that a process has mapped, above what it takes before it loads anything.

    The system's page cache does not count: nothing of the files is mapped. Two ranks map one copy
    of streamed weights.
    """
    places: dict[str, Any] = {"weights": weights, "text_weights": "disk"}
    request = VideoRequest(
        prompt="a cat", seed=0, height=64, width=96, num_frames=5, num_inference_steps=1
    )
    config = EngineConfig(model=str(wide), devices=devices, **places)
    with VideoEngine(config, isolated=True) as engine:
        ranks = engine.generate(request).metadata.ranks
    options = [f"--{name.replace('_', '-')}={value}" for name, value in places.items()]
    sizes = ["--height=64", "--width=96", "--num-frames=5"]
    command = ["plan", "--json", f"--gpu={profile}", f"--model={wide}", f"--devices={devices}"]
    capsys.readouterr()
    assert cli.main([*command, *sizes, *options]) == 0
    parts = json.loads(capsys.readouterr().out)["best"]["memory_bytes"]
    whole = sum(file.stat().st_size for file in (wide / "transformer").glob("*.safetensors"))
    planned_bytes = sum(parts.values()) - parts["runtime"]
    assert planned_bytes < whole / 4
    for rank in ranks:
        measured = rank.peak_memory_bytes - parts["runtime"]
        assert measured < 1.15 * (planned_bytes + (whole if weights == "streamed" else 0))
