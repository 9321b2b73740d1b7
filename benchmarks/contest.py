"""Interleaved measurement of contestants, each on its own ranks, which sleep between turns."""

from __future__ import annotations

import math
import random
import re
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist

from longtake.engine.tools.bench.markdown import markdown_table
from tests.ranks import RankFailure, RankGroup

Turn = Callable[[], object]
"""What is timed: one call of attention, one denoising step, one decoding."""

Prepared = tuple[Turn, dict[str, float]]
"""A rank's turn, and figures by name that were measured once, such as ``bytes_sent``."""


@dataclass
class Contestant:
    """A package in one layout, and its results.

    Attributes:
        package: Name of the package.
        degrees: Parallel degrees of the layout, by name; empty for one rank.
        method: Label of the layout in tables; made from the degrees if empty.
        seconds: Time of the slowest rank, by round.
        cpu_seconds: CPU time of all ranks together, by round.
        figures: Figures measured once, the maximum over ranks.
        refusal: Reason why the contestant cannot run; None if it can.
    """

    package: str
    degrees: dict[str, int]
    method: str = ""
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)
    refusal: str | None = None

    @property
    def num_ranks(self) -> int:
        """Number of ranks."""
        return math.prod(self.degrees.values())

    @property
    def name(self) -> str:
        """Label in tables."""
        layout = " ".join(
            f"{axis.removesuffix('_degree')} {degree}" for axis, degree in self.degrees.items()
        )
        return f"{self.package} {self.method or layout or 'one rank'}"

    @property
    def median_s(self) -> float:
        """Median time of one turn, in seconds."""
        return statistics.median(self.seconds)

    @property
    def median_cpu_s(self) -> float:
        """Median CPU time of one turn, in seconds of all ranks together.

        Other processes of a machine disturb it less than the time, and it excludes waiting.
        """
        return statistics.median(self.cpu_seconds)


@dataclass(frozen=True)
class Contest:
    """A measurement of several contestants.

    Attributes:
        prepare: Function called on each rank with a contestant and the settings.
        device_type: "cuda" or "cpu".
        rounds: Number of rounds. Each runs all contestants once, in random order.
    """

    prepare: Callable[..., Prepared]
    device_type: str
    rounds: int

    def measure(self, contestants: Sequence[Contestant], *settings: Any) -> None:
        """Measure contestants in place.

        Args:
            contestants: Contestants with different names.
            settings: Further arguments of ``prepare``.
        """
        groups: dict[str, RankGroup] = {}
        try:
            for each in contestants:
                groups[each.name] = RankGroup(
                    each.num_ranks,
                    call_timeout_s=900.0,
                    device_type=self.device_type,
                    warnings_are="ignore",
                )
                self._prepare(each, groups[each.name], settings)
            for _ in range(self.rounds):
                for each in random.sample(contestants, len(contestants)):
                    if each.refusal is None:
                        self._take_turn(each, groups[each.name])
        finally:
            for group in groups.values():
                group.close()

    def _prepare(self, contestant: Contestant, group: RankGroup, settings: tuple[Any, ...]) -> None:
        try:
            figures = group.run(_prepare_rank, self.prepare, contestant, settings)
        except RankFailure as failure:
            contestant.refusal = _reason(failure)
            group.close()
        else:
            contestant.figures = {name: max(each[name] for each in figures) for name in figures[0]}

    def _take_turn(self, contestant: Contestant, group: RankGroup) -> None:
        try:
            times = group.run(_time_turn, self.device_type)
            contestant.seconds.append(max(seconds for seconds, _ in times))
            contestant.cpu_seconds.append(sum(cpu_seconds for _, cpu_seconds in times))
        except RankFailure as failure:  # such as a rank killed for running out of memory
            contestant.refusal = _reason(failure)
            group.close()


def contest_table(
    contestants: Sequence[Contestant],
    columns: Sequence[str],
    cells: Callable[[Contestant], list[str]],
) -> str:
    """Results in Markdown: a row for each contestant, with what it sent and its peak memory.

    Args:
        contestants: Contestants that were measured.
        columns: Headings of the cells between the name and the bytes sent.
        cells: Those cells, of a contestant that ran.
    """
    rows = [
        [each.name, *cells(each), *_costs(each)]
        if each.refusal is None
        else [each.name, f"cannot: {each.refusal}"]
        for each in contestants
    ]
    return markdown_table(["contestant", *columns, "MB sent", "calls", "peak MB"], rows)


def _costs(contestant: Contestant) -> list[str]:
    figures = contestant.figures
    return [
        f"{figures['bytes_sent'] / 1e6:.2f}",
        f"{figures['collectives']:.0f}",
        f"{figures['peak_bytes'] / 1e6:.0f}",
    ]


class _Rank:
    """State of a rank between ``_prepare_rank`` and ``_time_turn``."""

    turn: Turn


def _prepare_rank(
    prepare: Callable[..., Prepared], contestant: Contestant, settings: tuple[Any, ...]
) -> dict[str, float]:
    """Prepare a contestant on this rank; return its figures."""
    with torch.inference_mode():
        _Rank.turn, figures = prepare(contestant, *settings)
    return figures


def _time_turn(device_type: str) -> tuple[float, float]:
    """Time of this rank's turn, after a barrier, and its CPU time, in seconds."""
    with torch.inference_mode():
        dist.barrier()
        start, start_cpu = time.perf_counter(), time.process_time()
        _Rank.turn()
        if device_type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start, time.process_time() - start_cpu


def rank_device(device_type: str) -> torch.device:
    """The device of this rank, with all ranks on one host."""
    return torch.device("cuda", dist.get_rank()) if device_type == "cuda" else torch.device("cpu")


def _reason(failure: RankFailure) -> str:
    """The exception of the first failed rank, shortened to one line."""
    raised = re.search(
        r"^(?:rank \d+: )?([\w.]*(?:Error|Exception|died|answer).*)", str(failure), re.M
    )
    line = raised[1] if raised else str(failure).splitlines()[-1]
    return (line if len(line) <= 110 else f"{line[:107]}...").replace("|", "/")
