"""Peak memory on a GPU against the plan, by the place of weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from longtake import VideoEngine, VideoRequest
from longtake.cli import main as cli
from longtake.configs.engine import EngineConfig
from tests import tiny

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

SIZE = {"height": 320, "width": 512, "num_frames": 65}


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose transformer takes 2 GiB in bfloat16, in blocks of at most 0.15 GiB."""
    shape: dict[str, Any] = dict(num_attention_heads=12, attention_head_dim=128)
    shape |= dict(num_layers=8, num_single_layers=16, rope_axes_dim=(16, 56, 56))
    return tiny.save(tmp_path_factory.mktemp("wide") / "model", **shape)


@pytest.mark.parametrize("weights", ["resident", "streamed", "disk"])
def test_peak_is_the_planned_one(
    capsys: pytest.CaptureFixture[str], wide: Path, weights: Any
) -> None:
    """torch.cuda.max_memory_allocated, within 5 % of the plan without the CUDA context."""
    config = EngineConfig(model=str(wide), weights=weights, text_weights="streamed")
    request = VideoRequest(prompt="a cat", seed=0, num_inference_steps=2, **SIZE)
    with VideoEngine(config, isolated=True) as engine:
        (rank,) = engine.generate(request).metadata.ranks
    options = [f"--{name.replace('_', '-')}={value}" for name, value in SIZE.items()]
    places = [f"--weights={weights}", "--text-weights=streamed"]
    capsys.readouterr()
    assert cli.main(["plan", "--json", f"--model={wide}", *options, *places]) == 0
    best = json.loads(capsys.readouterr().out)["best"]
    planned = best["memory_bytes_per_rank"] - best["memory_bytes"]["runtime"]
    assert rank.peak_memory_bytes == pytest.approx(planned, rel=0.05)
