"""One denoising step: longtake against its peers, interleaved in one run.

    make benchmark-denoise                   # the peers' environment, two ranks
    python -m benchmarks.denoise --ranks 2 --rounds 15

Every contestant has its own ranks, which sleep while others run. In each round every contestant
takes one step, in random order. One thread per rank. Prints a table and writes it to a dated file
with hardware and versions.
"""

from __future__ import annotations

import torch

from benchmarks.contest import Contest, Contestant, contest_table
from benchmarks.denoise.rank import prepare
from benchmarks.report import Report, benchmark_parser


def contestants(num_ranks: int) -> list[Contestant]:
    """Contestants on one rank, then on all ranks. The first of each layout is the baseline."""
    alone = [Contestant(package, {}) for package in ("longtake", "diffusers")]
    axes = ("ulysses_degree", "ring_degree")
    return alone + [
        Contestant(package, {axis: num_ranks})
        for axis in axes
        for package in ("longtake", "cache-dit")
    ]


def table(competing: list[Contestant]) -> str:
    """Results in Markdown. Ratios above 1 are slower than longtake in the same layout."""
    ours = {str(each.degrees): each.median_s for each in competing if each.package == "longtake"}
    alone = ours["{}"]

    def cells(each: Contestant) -> list[str]:
        return [
            f"{each.median_s:.3f}",
            f"{each.median_s / ours[str(each.degrees)]:.3f}",
            f"{alone / each.median_s:.3f}",
            f"{each.figures['error']:.1e}",
        ]

    columns = ["median s", "/ longtake", "one rank / it", "max error"]
    return contest_table(competing, columns, cells)


def main() -> None:
    """Parse the command line and run the benchmark."""
    parser = benchmark_parser(__doc__, rounds=11)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--dtypes", nargs="+", default=["float32"])
    args = parser.parse_args()
    device_type = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(1)

    subject = f"denoising on {args.ranks} ranks"
    report = Report(f"One step of {subject}", subject, device_type, args.results)
    report.add(f"Medians of {args.rounds} rounds, all contestants interleaved in one run.")
    contest = Contest(prepare, device_type, args.rounds)
    for name in args.dtypes:
        competing = contestants(args.ranks)
        contest.measure(competing, getattr(torch, name), device_type)
        parameters = competing[0].figures["parameters"] / 1e6
        report.add(f"## {name}, {parameters:.1f} M parameters", table(competing))
    report.write()


if __name__ == "__main__":
    main()
