"""The LoRA that comes with the package: `demo` in six steps, as it is in 24."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from safetensors import safe_open

from longtake import VideoEngine, VideoRequest
from longtake.cli.main import main
from longtake.configs.fields.few_step import METADATA_KEY
from longtake.configs.loras import bundled_loras
from tests.quality.few_step import LORA, REQUIRED, STEPS, judged, mean_psnr_db, render

NUMBERS = [at * 5 % 64 for at in range(10)]


@pytest.fixture(scope="module")
def engine() -> Iterator[VideoEngine]:
    with VideoEngine.from_pretrained() as engine:
        yield engine


def test_it_shows_what_prompts_ask_for_and_is_closer_to_24_steps(engine: VideoEngine) -> None:
    distilled = render(engine, NUMBERS, lora=(LORA,))
    found = judged(distilled, NUMBERS)
    assert all(found[part] >= required for part, required in REQUIRED.items()), found
    few = NUMBERS[:3]
    whole, base = render(engine, few), render(engine, few, num_inference_steps=STEPS)
    assert mean_psnr_db(distilled[:3], whole) > mean_psnr_db(base, whole) + 1


def test_its_file_is_small_and_says_what_it_is_made_for(
    engine: VideoEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    file = bundled_loras()[LORA]
    assert file.stat().st_size < 1.1e6
    with safe_open(file, "np") as opened:
        metadata = opened.metadata()
    assert json.loads(metadata[METADATA_KEY])["num_inference_steps"] == STEPS
    assert json.loads(metadata["training"])["start"] == "demo"
    resolved = engine.resolve(VideoRequest(prompt="a", lora=(LORA,)))
    assert (resolved.num_inference_steps, resolved.few_step) == (STEPS, "file")
    assert resolved.lora == (f"{LORA}:1.0",)
    assert main(["inspect", str(file)]) == 0
    made_for = "made for    num_inference_steps=6 flow_shift=3 guidance_scale=4\n"
    assert made_for in capsys.readouterr().out
