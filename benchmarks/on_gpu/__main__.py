"""All that wants a GPU, the most telling first: tests, then benchmarks, each with its result file.

    python -m benchmarks.on_gpu                     # 25 minutes, all of it
    python -m benchmarks.on_gpu --minutes 9 --from step --results out

Each part is a process of its own, and ends at its limit or at that of the whole. A part that fails
or is stopped ends none of the others. The last table says what became of each.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.report import Report, benchmark_parser
from longtake.engine.tools.bench.markdown import markdown_table

_LEAST_S = 20
"""A part with less time than that is not started."""


@dataclass(frozen=True)
class Part:
    """One process.

    Attributes:
        name: Name on the command line.
        command: Arguments of Python; ``RESULTS`` stands for the folder of results.
        limit_s: Seconds after which it is stopped.
    """

    name: str
    command: Sequence[str]
    limit_s: float


_ATTENTION = ("-m", "benchmarks.attention", "--kernels", "--results", "RESULTS")

PARTS = (
    Part("tests", ("-m", "pytest", "-q", "tests/gpu", "--maxfail=20"), 300),
    Part("places", ("-m", "benchmarks.on_gpu.places", "--results", "RESULTS"), 420),
    Part("step", ("-m", "benchmarks.on_gpu.step", "--results", "RESULTS", "--rounds", "2"), 420),
    Part("kernels", _ATTENTION, 180),
    Part("profile", ("-m", "longtake", "bench", "--calibrate", "-o", "RESULTS/here.yaml"), 120),
    Part("decode", ("-m", "benchmarks.on_gpu.decode", "--results", "RESULTS"), 180),
)


def run(part: Part, limit_s: float, results: Path) -> str:
    """Run a part; returns what became of it, in words. Its output goes to a log of its name."""
    command = [each.replace("RESULTS", str(results)) for each in part.command]
    with (results / f"{part.name}.log").open("w") as log:
        try:
            code = subprocess.run(
                [sys.executable, *command],
                stdout=log,
                stderr=subprocess.STDOUT,
                timeout=limit_s,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            return f"stopped after {limit_s:.0f} s"
    return "done" if code == 0 else f"ended with {code}"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    own = benchmark_parser(__doc__, rounds=0)
    own.add_argument("--minutes", type=float, default=25, help="limit of the whole")
    names = [part.name for part in PARTS]
    own.add_argument("--from", dest="first", choices=names, default=names[0])
    return own


def main() -> None:
    """Run all parts that there is time for."""
    args = parser().parse_args()
    results: Path = args.results.absolute()
    results.mkdir(parents=True, exist_ok=True)
    report = Report("All that wants a GPU", "on a gpu", "cuda", results)
    end_s, rows = time.monotonic() + 60 * args.minutes, []
    first = [part.name for part in PARTS].index(args.first)
    for part in PARTS[first:]:
        left_s, start = end_s - time.monotonic(), time.monotonic()
        outcome = "no time left"
        if left_s >= _LEAST_S:
            outcome = run(part, min(part.limit_s, left_s), results)
        rows.append([part.name, outcome, f"{time.monotonic() - start:.0f}"])
        print(*rows[-1], flush=True)
    report.add(markdown_table(["part", "outcome", "s"], rows))
    report.write()


if __name__ == "__main__":
    main()
