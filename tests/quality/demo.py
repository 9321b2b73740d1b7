"""Renders prompts and pictures on which the demo models were not trained, and judges the videos.

``python -m tests.quality.demo`` prints and saves tables; it fails below REQUIRED.
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
"""Minimum share of videos in which each property is right."""

REQUIRED_FOR_PICTURES = {**REQUIRED, "shape": 0.95, "first frame": 1.0}
"""The same for image-to-video."""

FIRST_FRAME_DB = 25.0
"""Minimum PSNR between the picture and the first frame."""

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"

Judged = list[tuple[Verdict, Verdict]]


def render_and_judge(engine: VideoEngine, numbers: Sequence[int]) -> Judged:
    """Expected and actual verdicts; a prompt's number is its seed."""
    cases = prompts()
    requests = [VideoRequest(prompt=cases[number][0], seed=number) for number in numbers]
    return [
        (cases[number][1], judge(engine.generate(request).frames))
        for number, request in zip(numbers, requests, strict=True)
    ]


def animate_and_judge(engine: VideoEngine, numbers: Sequence[int]) -> tuple[Judged, list[float]]:
    """Expected and actual verdicts of pictures, and the PSNR of the first frames in dB."""
    cases, judged, first_frame_db = pictures(), [], []
    with tempfile.TemporaryDirectory() as folder:
        for number in numbers:
            picture, prompt, verdict = cases[number]
            path = Path(folder, f"{number}.png")
            Image.fromarray(picture).save(path)
            frames = engine.generate(VideoRequest(prompt=prompt, image=path, seed=number)).frames
            judged.append((verdict, judge(frames)))
            first_frame_db.append(psnr_db(frames[0], (picture / 255).astype(np.float32), 1.0))
    return judged, first_frame_db


def shares(judged: Judged, first_frame_db: Sequence[float] = ()) -> dict[str, float]:
    """Share of videos in which each property of :data:`REQUIRED` is right."""
    right = {
        name: [getattr(expected, name) == getattr(actual, name) for expected, actual in judged]
        for name in ("color", "shape", "direction", "background")
    }
    right["not blank"] = [not actual.blank for _, actual in judged]
    right["not static"] = [not actual.static for _, actual in judged]
    if first_frame_db:
        right["first frame"] = [each >= FIRST_FRAME_DB for each in first_frame_db]
    return {name: sum(each) / len(judged) for name, each in right.items()}


def report(
    model: str, title: str, judged: Judged, found: dict[str, float], required: dict[str, float]
) -> bool:
    """Print and save the shares; returns whether they suffice."""
    lines = [f"# {title}, {datetime.now():%Y-%m-%d %H:%M}", ""]
    lines += ["| | right | required |", "|---|---|---|"]
    lines += [f"| {name} | {found[name]:.1%} | {share:.0%} |" for name, share in required.items()]
    lines += [""] + [
        f"- {number}: expected a {expected.color} {expected.shape} {expected.direction} on "
        f"{expected.background}, shows a {actual.color} {actual.shape} {actual.direction} on "
        f"{actual.background}"
        for number, (expected, actual) in enumerate(judged)
        if expected != actual
    ]
    text = "\n".join(lines).rstrip() + "\n"
    print(text)
    (RESULTS / f"{datetime.now():%Y-%m-%d-%H%M}-quality-of-{model}.md").write_text(text)
    return all(found[name] >= share for name, share in required.items())


def main() -> None:
    """Judge all prompts and pictures, and save the results."""
    with VideoEngine.from_pretrained("demo") as engine:
        judged = render_and_judge(engine, range(len(prompts())))
    title = f"demo on {len(judged)} prompts"
    prompts_good = report("demo", title, judged, shares(judged), REQUIRED)
    with VideoEngine.from_pretrained("demo-i2v") as engine:
        judged, first_frame_db = animate_and_judge(engine, range(len(pictures())))
    title = (
        f"demo-i2v on {len(judged)} pictures; first frames {min(first_frame_db):.1f} dB at least, "
        f"{np.mean(first_frame_db):.1f} on average"
    )
    found = shares(judged, first_frame_db)
    pictures_good = report("demo-i2v", title, judged, found, REQUIRED_FOR_PICTURES)
    sys.exit(0 if prompts_good and pictures_good else 1)


if __name__ == "__main__":
    main()
