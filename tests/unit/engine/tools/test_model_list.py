"""The list of models: sizes, licenses, and what a machine can run."""

from __future__ import annotations

import json
from typing import Any

import pytest

from longtake.cli import main as cli
from longtake.configs.models import bundled, presets
from longtake.engine.tools.model_list import published_bytes
from longtake.pipelines import registry
from longtake.pipelines.loading.checkpoint import Checkpoint
from longtake.pipelines.loading.files import hub


def listed(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, dict[str, Any]]:
    """What ``longtake models --json`` prints, by model."""
    assert cli.main(["models", "--json", *arguments]) == 0
    models: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["models"]
    return {each["model"]: each for each in models}


def test_models_of_a_small_gpu(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "downloaded_folder", lambda repository: None)
    monkeypatch.setenv("COLUMNS", "200")
    models = listed(capsys, "--gpu", "rtx4080")
    assert [*models] == [*bundled(), *presets()]
    assert all(each["license"] for each in models.values())
    assert {models[name]["state"] for name in bundled()} == {"bundled"}
    assert {models[name]["state"] for name in presets()} == {"no"}
    weights = (bundled()["demo"]).glob("*/*.safetensors")
    assert models["demo"]["num_bytes"] == sum(file.stat().st_size for file in weights)
    assert models["demo"]["fits"] and models["demo"]["height"] == 64
    large = models["hunyuan-video"]
    what_fits = ["plan", "--what-fits", "--model", "hunyuan-video", "--gpu", "rtx4080", "--json"]
    assert cli.main(what_fits) == 0
    fits = json.loads(capsys.readouterr().out)["fits"]
    first = next(each for each in fits if each["longest_num_frames"] >= 129)
    keys = ("fits", "width", "height", "num_frames", "rendering_s")
    assert [large[key] for key in keys] == [first[key] for key in keys]
    assert cli.main(["models", "--gpu", "h100"]) == 0
    printed = capsys.readouterr().out
    row = next(line for line in printed.splitlines() if line.startswith("hunyuan-video "))
    assert "41.9 GB" in row and "tencent-hunyuan-community" in row and "1280x720" in row


@pytest.mark.parametrize(
    ("model", "gigabytes"),
    [("wan2.1-t2v-1.3b", 28.9), ("wan2.2-t2v-a14b", 126.2), ("wan2.2-ti2v-5b", 34.2)],
)
def test_published_size(model: str, gigabytes: float) -> None:
    """Sizes of these repositories, which are known."""
    spec = registry.inspect(Checkpoint.open(model, configs_only=True), weights=False)
    assert published_bytes(spec) / 1e9 == pytest.approx(gigabytes, abs=0.1)
