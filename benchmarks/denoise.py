"""One denoising step: longtake against its peers, interleaved in one run.

    make benchmark-denoise                   # the peers' environment, two ranks
    python -m benchmarks.denoise --ranks 2 --rounds 15

Every contestant has ranks of its own, which sleep while another's work. In each round every
contestant takes one step, in an order drawn anew. One thread a rank. Prints a table, and writes it
to a dated file with hardware and versions.
"""

from __future__ import annotations

import argparse
import random
import statistics
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import torch

from benchmarks.attention import environment, reason
from benchmarks.steps import prepare, run_once
from tests.ranks import RankFailure, RankGroup


@dataclass
class Contestant:
    """A package in a layout.

    Attributes:
        seconds: of each round, the slowest rank's.
        one_step: the most of any rank (see steps.prepare).
        refusal: why it cannot run, if it cannot.
    """

    package: str
    degrees: dict[str, int]
    seconds: list[float] = field(default_factory=list)
    one_step: dict[str, float] = field(default_factory=dict)
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
        """Median seconds of one step."""
        return statistics.median(self.seconds)


def contestants(num_ranks: int) -> list[Contestant]:
    """One rank, then all ranks; the first of each is what the others are compared with."""
    alone = [Contestant(package, {}) for package in ("longtake", "diffusers")]
    axes = ("ulysses_degree", "ring_degree")
    return alone + [
        Contestant(package, {axis: num_ranks})
        for axis in axes
        for package in ("longtake", "cache-dit")
    ]


def measure(entered: list[Contestant], rounds: int, dtype: torch.dtype, device_type: str) -> None:
    """Fill in what each contestant does."""
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
                answers = group.run(prepare, each.package, each.degrees, dtype, device_type)
            except RankFailure as failure:
                each.refusal = reason(failure)
                group.close()
            else:
                groups[each.name] = group
                each.one_step = {key: max(a[key] for a in answers) for key in answers[0]}
        for _ in range(rounds):
            for each in random.sample(entered, len(entered)):
                if each.refusal is None:
                    each.seconds.append(max(groups[each.name].run(run_once, device_type)))
    finally:
        for group in groups.values():
            group.close()


def table(entered: list[Contestant]) -> str:
    """The results in Markdown. Ratios above 1 are slower than longtake in the same layout."""
    ours = {str(each.degrees): each.median_s for each in entered if each.package == "longtake"}
    alone = ours["{}"]
    lines = [
        "| contestant | median s | / longtake | one rank / it | max error | MB sent | calls "
        "| peak MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for each in entered:
        if each.refusal is not None:
            lines.append(f"| {each.name} | cannot: {each.refusal} | | | | | | |")
            continue
        step = each.one_step
        lines.append(
            f"| {each.name} | {each.median_s:.3f} | {each.median_s / ours[str(each.degrees)]:.3f} "
            f"| {alone / each.median_s:.3f} | {step['error']:.1e} "
            f"| {step['bytes_sent'] / 1e6:.2f} | {step['collectives']:.0f} "
            f"| {step['peak_bytes'] / 1e6:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--dtypes", nargs="+", default=["float32"])
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    device_type = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(1)

    begun = datetime.now()
    what = f"denoising on {args.ranks} ranks"
    report = [f"# One step of {what}, {begun:%Y-%m-%d %H:%M}", environment(device_type)]
    report.append(f"Medians of {args.rounds} rounds, all contestants interleaved in one run.")
    for name in args.dtypes:
        entered = contestants(args.ranks)
        measure(entered, args.rounds, getattr(torch, name), device_type)
        parameters = entered[0].one_step["parameters"] / 1e6
        report += [f"## {name}, {parameters:.1f} M parameters", table(entered)]
        print("\n\n".join(report[-2:]), flush=True)
    args.results.mkdir(parents=True, exist_ok=True)
    path = args.results / f"{begun:%Y-%m-%d-%H%M}-{what.replace(' ', '-')}.md"
    path.write_text("\n\n".join(report) + "\n")
    print(f"\nwritten to {path}")


if __name__ == "__main__":
    main()
