"""Judges `demo` at few steps, with and without the LoRA that is distilled for them.

``python -m tests.quality.few_step`` prints and saves a table; it fails below REQUIRED.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from longtake import VideoEngine, VideoRequest
from longtake.configs.loras import bundled_loras
from longtake.engine.tools.differences import psnr_db
from tests.quality.demo import RESULTS, shares
from tests.quality.judge import judge
from tests.quality.prompts import prompts

LORA = "demo-6step"
STEPS = 6

REQUIRED = {"color": 0.9, "direction": 0.9, "background": 0.9}
"""Minimum share of videos with the LoRA in which each property is right."""

Frames = npt.NDArray[np.float32]


def render(engine: VideoEngine, numbers: Sequence[int], **fields: Any) -> list[Frames]:
    """Frames of prompts, whose numbers are their seeds."""
    cases = prompts()
    return [
        engine.generate(VideoRequest(prompt=cases[number][0], seed=number, **fields)).frames
        for number in numbers
    ]


def judged(videos: Sequence[Frames], numbers: Sequence[int]) -> dict[str, float]:
    """Share of videos in which each property is right."""
    cases = prompts()
    pairs = zip(videos, numbers, strict=True)
    return shares([(cases[number][1], judge(video)) for video, number in pairs])


def mean_psnr_db(videos: Sequence[Frames], references: Sequence[Frames]) -> float:
    """Mean PSNR of videos in dB."""
    pairs = zip(videos, references, strict=True)
    return float(np.mean([psnr_db(video, reference, 1.0) for video, reference in pairs]))


def main() -> None:
    """Judge all prompts, and save the results."""
    numbers = range(len(prompts()))
    with VideoEngine.from_pretrained("demo") as engine:
        whole = render(engine, numbers)
        steps = engine.spec.defaults.num_inference_steps
        videos = {
            f"{steps} steps": whole,
            f"{STEPS} steps": render(engine, numbers, num_inference_steps=STEPS),
            f"{STEPS} steps, LoRA": render(engine, numbers, lora=(LORA,)),
        }
    found = {name: judged(rendered, numbers) for name, rendered in videos.items()}
    properties = list(found[f"{STEPS} steps"])
    num_bytes = bundled_loras()[LORA].stat().st_size
    lines = [f"# {LORA} ({num_bytes / 1e6:.2f} MB) on {len(numbers)} prompts", ""]
    lines += [f"| | {' | '.join(properties)} | PSNR to {steps} steps |"]
    lines += ["|---" * (len(properties) + 2) + "|"]
    for name, rendered in videos.items():
        right = " | ".join(f"{found[name][each]:.1%}" for each in properties)
        likeness = "" if rendered is whole else f"{mean_psnr_db(rendered, whole):.1f} dB"
        lines.append(f"| {name} | {right} | {likeness} |")
    text = "\n".join(lines) + "\n"
    print(text)
    (RESULTS / f"{datetime.now():%Y-%m-%d-%H%M}-quality-of-{LORA}.md").write_text(text)
    good = all(found[f"{STEPS} steps, LoRA"][name] >= share for name, share in REQUIRED.items())
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
