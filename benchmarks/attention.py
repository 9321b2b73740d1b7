"""Attention across ranks: longtake against its peers, interleaved in one run.

    make benchmark                            # the peers' environment, two ranks, all shapes
    python -m benchmarks.attention --ranks 4 --shapes 1x4096x8x64 --dtypes float32
    python -m benchmarks.attention --kernels  # the local kernels of one device, as with one GPU

Every contestant has its own ranks, which sleep while others run, so that contestants cannot affect
each other and a crash is reported. In each round every contestant runs once, in random order. Two
of longtake's contestants are baselines: one rank, and ranks that compute their shares concurrently
without communication. One thread per rank. Prints one table per shape and writes all of them to a
dated file with hardware and versions.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import re
import statistics
from dataclasses import dataclass, field
from datetime import datetime
from importlib import metadata
from pathlib import Path

import torch

from benchmarks.contestants import BY_NAME, CONTESTANTS, Contestant
from benchmarks.kernels import kernel_table
from benchmarks.measuring import Shape, prepare, run_once
from tests.ranks import RankFailure, RankGroup

BASELINE, OURS = "longtake one rank", "longtake ulysses"


@dataclass
class Result:
    """Measurements of one contestant on one shape.

    Attributes:
        contestant: The contestant.
        seconds: Time of the slowest rank, by round.
        one_call: Figures from ``measuring.prepare``, the maximum over ranks.
        refusal: Reason why the contestant cannot run; None if it can.
    """

    contestant: Contestant
    seconds: list[float] = field(default_factory=list)
    one_call: dict[str, float] = field(default_factory=dict)
    refusal: str | None = None

    @property
    def median_s(self) -> float:
        """Median time of one call, in seconds."""
        return statistics.median(self.seconds)


def compare(
    names: list[str],
    shape: Shape,
    dtype: torch.dtype,
    num_ranks: int,
    rounds: int,
    device_type: str,
) -> list[Result]:
    """Measure contestants on one shape."""
    results = [Result(BY_NAME[name]) for name in names]
    groups: dict[str, RankGroup] = {}
    try:
        for result in results:
            name = result.contestant.name
            groups[name] = RankGroup(
                1 if name == BASELINE else num_ranks,
                call_timeout_s=900.0,
                device_type=device_type,
                warnings_are="ignore",
            )
            try:
                answers = groups[name].run(prepare, name, shape, dtype, device_type)
            except RankFailure as failure:
                result.refusal = reason(failure)
                groups.pop(name).close()
            else:
                result.one_call = {key: max(a[key] for a in answers) for key in answers[0]}
        for _ in range(rounds):
            for result in random.sample(results, len(results)):
                if result.refusal is None:
                    _run(result, groups[result.contestant.name], device_type)
    finally:
        for group in groups.values():
            group.close()
    return results


def _run(result: Result, group: RankGroup, device_type: str) -> None:
    """Time one call of one contestant."""
    try:
        result.seconds.append(max(group.run(run_once, device_type)))
    except RankFailure as failure:  # such as a rank killed for running out of memory
        result.refusal = reason(failure)
        group.close()


def table(results: list[Result], num_ranks: int) -> str:
    """Results of one shape in Markdown. Ratios above 1 are slower than the baseline."""
    seconds = {r.contestant.name: r.median_s for r in results if r.refusal is None}
    lines = [
        "| contestant | median s | / longtake ulysses | / (one rank / ranks) | max error "
        "| MB sent | calls | peak MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        name = result.contestant.name
        if result.refusal is not None:
            lines.append(f"| {name} | cannot: {result.refusal} | | | | | | |")
            continue
        call = result.one_call
        error = f"{call['error']:.1e}" if result.contestant.exact else ""
        lines.append(
            f"| {name} | {seconds[name]:.3f} | {seconds[name] / seconds[OURS]:.3f} "
            f"| {seconds[name] / seconds[BASELINE] * num_ranks:.3f} "
            f"| {error} | {call['bytes_sent'] / 1e6:.2f} | {call['collectives']:.0f} "
            f"| {call['peak_bytes'] / 1e6:.0f} |"
        )
    return "\n".join(lines)


def environment(device_type: str) -> str:
    """Hardware and versions, in one paragraph."""
    if device_type == "cuda":
        devices = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    else:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), "CPU")
        devices = f"{model}, {os.cpu_count()} logical cores, one thread a rank"
    packages = ["torch", *dict.fromkeys(contestant.package for contestant in CONTESTANTS)]
    return f"{devices}; Python {platform.python_version()}; " + ", ".join(map(_version, packages))


def _version(package: str) -> str:
    try:
        return f"{package} {metadata.version(package)}"
    except metadata.PackageNotFoundError:
        return f"{package} not installed"


def reason(failure: RankFailure) -> str:
    """The exception of the first failed rank, shortened to one line."""
    raised = re.search(
        r"^(?:rank \d+: )?([\w.]*(?:Error|Exception|died|answer).*)", str(failure), re.M
    )
    line = raised[1] if raised else str(failure).splitlines()[-1]
    return (line if len(line) <= 110 else f"{line[:107]}...").replace("|", "/")


def _shape(text: str) -> Shape:
    batch, num_tokens, num_heads, head_size = map(int, text.split("x"))
    return batch, num_tokens, num_heads, head_size


def main() -> None:
    """Parse the command line and run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--shapes", nargs="+", type=_shape, help="BxSxNxH")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--without", nargs="+", default=[], choices=BY_NAME, help="contestants")
    parser.add_argument("--kernels", action="store_true", help="time the local kernels alone")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    device_type = "cuda" if torch.cuda.is_available() else "cpu"
    kernels = args.kernels or (device_type == "cuda" and torch.cuda.device_count() < args.ranks)
    shapes = args.shapes or [(1, 4096, 8, 64), (1, 8192, 24, 64)]
    names = [name for name in BY_NAME if name not in args.without]
    torch.set_num_threads(1)

    what = "local kernels" if kernels else f"attention on {args.ranks} ranks"
    begun = datetime.now()
    report = [f"# {what}, {begun:%Y-%m-%d %H:%M}", environment(device_type)]
    report.append(f"Medians of {args.rounds} rounds, all contestants interleaved in one run.")
    for shape in shapes:
        for name in args.dtypes:
            dtype = getattr(torch, name)
            if kernels:
                rows = kernel_table(shape, dtype, args.rounds, device_type)
            else:
                results = compare(names, shape, dtype, args.ranks, args.rounds, device_type)
                rows = table(results, args.ranks)
            report += [f"## {'x'.join(map(str, shape))} {name}", rows]
            print("\n\n".join(report[-2:]), flush=True)
    args.results.mkdir(parents=True, exist_ok=True)
    path = args.results / f"{begun:%Y-%m-%d-%H%M}-{what.replace(' ', '-')}.md"
    path.write_text("\n\n".join(report) + "\n")
    print(f"\nwritten to {path}")


if __name__ == "__main__":
    main()
