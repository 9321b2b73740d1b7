"""Profiles that longtake bench writes and longtake plan reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from longtake.cli import main as cli
from longtake.configs.hardware import load_hardware

pytestmark = pytest.mark.usefixtures("new_ranks")


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This machine's profile, measured once on two ranks."""
    path = tmp_path_factory.mktemp("profile") / "here.yaml"
    arguments = ["bench", "--calibrate", "--devices", "2", "--rounds", "1", "--quiet"]
    assert cli.main([*arguments, "-o", str(path)]) == 0
    return path


def test_profile_names_its_sources(profile: Path) -> None:
    assert [path.name for path in profile.parent.iterdir()] == ["here.yaml"]
    content = yaml.safe_load(profile.read_text())
    assert "measured by longtake bench --calibrate" in content["launch_s"]["source"]
    hardware = load_hardware(str(profile))
    assert hardware.device == "cpu" and hardware.devices_per_node >= 2
    assert len(hardware.links) == 1
    shares = (hardware.linear_share, hardware.attention_share, hardware.convolution_share)
    assert max(share.value for share in shares) == 1.0
    assert 1e8 < hardware.flops_per_s["float32"].value < 1e13
    assert 1e6 < hardware.links[0].bytes_per_s.value < 1e12
    assert 1e8 < hardware.runtime_bytes.value < 2e9


def test_plan_reads_the_profile(profile: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "--gpu", str(profile), "--devices", "2", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert {each["name"] for each in plan["layouts"]} >= {"1x1x2", "1x2x1"}


def test_step_is_measured_and_predicted(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bench.md"
    arguments = ["bench", "--suite", "step", "--model", model, "--devices", "2", "-o", str(path)]
    assert cli.main(arguments) == 0
    rows = [line.split("|")[1:-1] for line in path.read_text().splitlines() if "| 1x" in line]
    assert {row[0].strip() for row in rows} == {"1x1x2", "1x2x1"}
    for row in rows:
        measured, predicted = float(row[1]), float(row[2])
        assert measured > 0 and predicted > 0
    assert f"written to {path}" in capsys.readouterr().out
    assert "torch 2." in path.read_text()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--devices", "2", "--device", "cuda"], "devices=2 with 0 GPUs here: try devices=1"),
        (["-o", "x.txt"], "output='x.txt' must end in .md"),
        (["--calibrate", "-o", "no/where/x.yaml"], "there is no folder no/where"),
        (["--suite", "everything"], "suite='everything' must be"),
        (["--rounds", "0"], "rounds='0' must be at least 1"),
        (["--model", "nothing"], "there is no folder nothing"),
    ],
)
def test_refusals(
    arguments: list[str],
    text: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["bench", *arguments]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert text in line
    assert not list(tmp_path.iterdir())
