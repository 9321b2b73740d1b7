"""Render the demo model's prompts and have them judged.

python -m tests.quality.demo    # all 64: prints a table and writes it down; fails below REQUIRED
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from longtake import VideoEngine, VideoRequest
from tests.quality.judge import Verdict, judge
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


def shares(judged: Judged) -> dict[str, float]:
    """For each of :data:`REQUIRED`, the part of the videos in which it is right."""
    right = {
        name: [getattr(asked, name) == getattr(shown, name) for asked, shown in judged]
        for name in ("color", "shape", "direction", "background")
    }
    right["not blank"] = [not shown.blank for _, shown in judged]
    right["not static"] = [not shown.static for _, shown in judged]
    return {name: sum(each) / len(judged) for name, each in right.items()}


def _report(judged: Judged, found: dict[str, float]) -> str:
    lines = [f"# The demo model on {len(judged)} prompts, {datetime.now():%Y-%m-%d %H:%M}", ""]
    lines += ["| | right | required |", "|---|---|---|"]
    lines += [f"| {name} | {found[name]:.1%} | {share:.0%} |" for name, share in REQUIRED.items()]
    lines += [""] + [
        f"- {number}: asked for a {asked.color} {asked.shape} {asked.direction} on "
        f"{asked.background}, shows a {shown.color} {shown.shape} {shown.direction} on "
        f"{shown.background}"
        for number, (asked, shown) in enumerate(judged)
        if asked != shown
    ]
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    """Judge all prompts, and write down what was right."""
    with VideoEngine.from_pretrained("demo") as engine:
        judged = render_and_judge(engine, range(len(prompts())))
    found = shares(judged)
    report = _report(judged, found)
    print(report)
    (_RESULTS / f"{datetime.now():%Y-%m-%d-%H%M}-quality-of-the-demo.md").write_text(report)
    sys.exit(0 if all(found[name] >= share for name, share in REQUIRED.items()) else 1)


if __name__ == "__main__":
    main()
