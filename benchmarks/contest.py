"""Contestants that take turns in one run, each on ranks of its own, which sleep meanwhile."""

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
    """A package in a layout.

    Attributes:
        degrees: of its layout; one rank without any.
        seconds: of each round, the slowest rank's.
        figures: what preparing it gave, the most of any rank.
        refusal: why it cannot run, if it cannot.
    """

    package: str
    degrees: dict[str, int]
    seconds: list[float] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)
    refusal: str | None = None

    @property
    def num_ranks(self) -> int:
        """Ranks that it runs on."""
        return self.degrees.get("ulysses_degree", 1) * self.degrees.get("ring_degree", 1)

    @property
    def name(self) -> str:
        """As it stands in the table."""
        words = " ".join(
            f"{axis.removesuffix('_degree')} {degree}" for axis, degree in self.degrees.items()
        )
        return f"{self.package} {words or 'one rank'}"

    @property
    def median_s(self) -> float:
        """Median seconds of one turn."""
        return statistics.median(self.seconds)


def measure(
    entered: Sequence[Contestant],
    rounds: int,
    device_type: str,
    prepare: Callable[..., dict[str, Any]],
    settings: tuple[Any, ...],
    run_once: Callable[[str], float],
) -> None:
    """Fill in what each contestant does; in each round all take a turn, in an order drawn anew.

    Args:
        prepare: called on each rank with package, degrees and ``settings``; returns figures.
        run_once: called on each rank with the device's type; returns seconds.
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
    """A dated file of results, printed as it grows.

    Args:
        title: of the file; ``what`` names it.
        folder: where it goes.
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
