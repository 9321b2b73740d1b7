"""Render with the demo models what they were not trained on, and have it judged.

python -m tests.quality.demo    # all: prints tables and writes them down; fails below REQUIRED
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import numpy as np
from PIL import Image

from longtake import VideoEngine, VideoRequest
from longtake.engine.tools.differences import psnr_db
from tests.quality.judge import Verdict, judge
from tests.quality.pictures import pictures
from tests.quality.prompts import prompts

REQUIRED = {
    "color": 0.95,
    "shape": 0.9,
    "direction": 0.95,
    "background": 0.95,
    "not blank": 1.0,
    "not static": 1.0,
}
"""The part of the videos in which each must be right."""

REQUIRED_OF_PICTURES = {**REQUIRED, "shape": 0.95, "first frame": 1.0}
"""The same of those that begin with a picture."""

FIRST_FRAME_DB = 25.0
"""PSNR of the first frame over the picture, at least."""

_RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"

Judged = list[tuple[Verdict, Verdict]]


def render_and_judge(engine: VideoEngine, numbers: Sequence[int]) -> Judged:
    """What each prompt asks for, and what its video shows; a prompt's number is its seed."""
    asked = prompts()
    requests = [VideoRequest(prompt=asked[number][0], seed=number) for number in numbers]
    return [
        (asked[number][1], judge(engine.generate(request).frames))
        for number, request in zip(numbers, requests, strict=True)
    ]


def animate_and_judge(engine: VideoEngine, numbers: Sequence[int]) -> tuple[Judged, list[float]]:
    """The same of pictures; and how like them the first frames are, in decibels."""
    asked, judged, likeness = pictures(), [], []
    with tempfile.TemporaryDirectory() as folder:
        for number in numbers:
            picture, prompt, verdict = asked[number]
            path = Path(folder, f"{number}.png")
            Image.fromarray(picture).save(path)
            frames = engine.generate(VideoRequest(prompt=prompt, image=path, seed=number)).frames
            judged.append((verdict, judge(frames)))
            likeness.append(psnr_db(frames[0], (picture / 255).astype(np.float32), 1.0))
    return judged, likeness


def shares(judged: Judged, likeness: Sequence[float] = ()) -> dict[str, float]:
    """For each of :data:`REQUIRED`, the part of the videos in which it is right."""
    right = {
        name: [getattr(asked, name) == getattr(shown, name) for asked, shown in judged]
        for name in ("color", "shape", "direction", "background")
    }
    right["not blank"] = [not shown.blank for _, shown in judged]
    right["not static"] = [not shown.static for _, shown in judged]
    if likeness:
        right["first frame"] = [each >= FIRST_FRAME_DB for each in likeness]
    return {name: sum(each) / len(judged) for name, each in right.items()}


def report(
    model: str, title: str, judged: Judged, found: dict[str, float], required: dict[str, float]
) -> bool:
    """Print what was right, and write it down; returns whether it is enough."""
    lines = [f"# {title}, {datetime.now():%Y-%m-%d %H:%M}", ""]
    lines += ["| | right | required |", "|---|---|---|"]
    lines += [f"| {name} | {found[name]:.1%} | {share:.0%} |" for name, share in required.items()]
    lines += [""] + [
        f"- {number}: asked for a {asked.color} {asked.shape} {asked.direction} on "
        f"{asked.background}, shows a {shown.color} {shown.shape} {shown.direction} on "
        f"{shown.background}"
        for number, (asked, shown) in enumerate(judged)
        if asked != shown
    ]
    text = "\n".join(lines).rstrip() + "\n"
    print(text)
    (_RESULTS / f"{datetime.now():%Y-%m-%d-%H%M}-quality-of-{model}.md").write_text(text)
    return all(found[name] >= share for name, share in required.items())


def main() -> None:
    """Judge everything, and write down what was right."""
    with VideoEngine.from_pretrained("demo") as engine:
        judged = render_and_judge(engine, range(len(prompts())))
    title = f"demo on {len(judged)} prompts"
    prompts_good = report("demo", title, judged, shares(judged), REQUIRED)
    with VideoEngine.from_pretrained("demo-i2v") as engine:
        judged, likeness = animate_and_judge(engine, range(len(pictures())))
    title = (
        f"demo-i2v on {len(judged)} pictures; first frames {min(likeness):.1f} dB at least, "
        f"{np.mean(likeness):.1f} on average"
    )
    found = shares(judged, likeness)
    pictures_good = report("demo-i2v", title, judged, found, REQUIRED_OF_PICTURES)
    sys.exit(0 if prompts_good and pictures_good else 1)


if __name__ == "__main__":
    main()
