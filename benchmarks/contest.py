"""Interleaved measurement of contestants, each on its own ranks, which sleep between turns."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks.attention import environment, reason
from tests.ranks import RankFailure, RankGroup


@dataclass
class Contestant:
    """A package in one layout.

    Attributes:
        package: Name of the package.
        degrees: Parallel degrees of the layout, by name; empty for one rank.
        seconds: Time of the slowest rank, by round.
        figures: Figures returned by ``prepare``, the maximum over ranks.
        refusal: Reason why the contestant cannot run; None if it can.
    """

    package: str
    degrees: dict[str, int]
    seconds: list[float] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)
    refusal: str | None = None

    @property
    def num_ranks(self) -> int:
        """Number of ranks."""
        return self.degrees.get("ulysses_degree", 1) * self.degrees.get("ring_degree", 1)

    @property
    def name(self) -> str:
        """Label in tables."""
        words = " ".join(
            f"{axis.removesuffix('_degree')} {degree}" for axis, degree in self.degrees.items()
        )
        return f"{self.package} {words or 'one rank'}"

    @property
    def median_s(self) -> float:
        """Median time of one turn, in seconds."""
        return statistics.median(self.seconds)


def measure(
    entered: Sequence[Contestant],
    rounds: int,
    device_type: str,
    prepare: Callable[..., dict[str, Any]],
    settings: tuple[Any, ...],
    run_once: Callable[[str], float],
) -> None:
    """Measure contestants in place. Each round runs all of them once, in random order.

    Args:
        entered: Contestants to measure.
        rounds: Number of rounds.
        device_type: "cuda" or "cpu".
        prepare: Function called on each rank with package, degrees and ``settings``; returns
            figures by name.
        settings: Additional arguments of ``prepare``.
        run_once: Function called on each rank with the device type; returns seconds.
    """
    groups: dict[str, RankGroup] = {}
    try:
        for each in entered:
            group = RankGroup(
                each.num_ranks,
                call_timeout_s=900.0,
                device_type=device_type,
                warnings_are="ignore",
            )
            try:
                answers = group.run(prepare, each.package, each.degrees, *settings)
            except RankFailure as failure:
                each.refusal = reason(failure)
                group.close()
            else:
                groups[each.name] = group
                each.figures = {key: max(a[key] for a in answers) for key in answers[0]}
        for _ in range(rounds):
            for each in random.sample(entered, len(entered)):
                if each.refusal is None:
                    each.seconds.append(max(groups[each.name].run(run_once, device_type)))
    finally:
        for group in groups.values():
            group.close()


class Report:
    """A dated Markdown file of results, whose paragraphs are also printed.

    Args:
        title: Heading of the file.
        what: Subject of the benchmark, used in the file name.
        device_type: "cuda" or "cpu".
        folder: Folder of the file.
    """

    def __init__(self, title: str, what: str, device_type: str, folder: Path) -> None:
        begun = datetime.now()
        self._path = folder / f"{begun:%Y-%m-%d-%H%M}-{what.replace(' ', '-')}.md"
        self._parts = [f"# {title}, {begun:%Y-%m-%d %H:%M}", environment(device_type)]

    def add(self, *parts: str) -> None:
        """Add paragraphs."""
        self._parts += parts
        print("\n\n".join(parts), flush=True)

    def write(self) -> None:
        """Write the file."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text("\n\n".join(self._parts) + "\n")
        print(f"\nwritten to {self._path}")
