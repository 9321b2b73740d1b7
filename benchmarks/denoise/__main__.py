"""One denoising step: longtake against its peers, interleaved in one run.

    make benchmark-denoise                   # the peers' environment, two ranks, all families
    python -m benchmarks.denoise --ranks 2 --rounds 15 --families wan --dtypes float32 bfloat16

Every contestant has its own ranks, which sleep while others run. Before it is timed, its velocity
is checked against that of diffusers on one rank. In each round every contestant takes one step, in
random order: all passes, guidance and scheduler. One thread per rank. Prints a table for each model
and writes all of them to a dated file with hardware and versions.
"""

from __future__ import annotations

import torch

from benchmarks.contest import Contest, Contestant, contest_table
from benchmarks.denoise.rank import FAMILIES, expected_velocity, prepare
from benchmarks.report import Report, benchmark_parser


def contestants(num_ranks: int, num_passes: int) -> list[Contestant]:
    """Contestants on one rank, then on all ranks. longtake's are the baseline of each layout.

    No peer computes the passes of a step on different ranks.
    """
    alone = [Contestant(package, {}) for package in ("longtake", "diffusers")]
    together = [
        Contestant(package, {axis: num_ranks})
        for axis in ("ulysses_degree", "ring_degree")
        for package in ("longtake", "diffusers", "cache-dit")
    ]
    if num_passes % num_ranks == 0:
        together.append(Contestant("longtake", {"cfg_degree": num_ranks}))
    return alone + together


def table(competing: list[Contestant]) -> str:
    """Results in Markdown. Ratios above 1 are slower than longtake in the same layout."""
    ours = {str(each.degrees): each for each in competing if each.package == "longtake"}
    alone = ours["{}"]

    def cells(each: Contestant) -> list[str]:
        baseline = ours[str(each.degrees)]
        return [
            f"{each.median_s:.3f}",
            f"{each.median_s / baseline.median_s:.3f}",
            f"{alone.median_s / each.median_s:.3f}",
            f"{each.median_cpu_s:.3f}",
            f"{each.median_cpu_s / baseline.median_cpu_s:.3f}",
            f"{each.figures['error']:.1e}",
        ]

    columns = ["median s", "/ longtake", "one rank / it", "CPU s", "/ longtake", "max error"]
    return contest_table(competing, columns, cells)


def main() -> None:
    """Parse the command line and run the benchmark."""
    parser = benchmark_parser(__doc__, rounds=11)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--families", nargs="+", default=list(FAMILIES), choices=FAMILIES)
    parser.add_argument("--dtypes", nargs="+", default=["float32"], choices=["float32", "bfloat16"])
    args = parser.parse_args()
    device_type = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(1)

    subject = f"denoising on {args.ranks} ranks"
    report = Report(f"One step of {subject}", subject, device_type, args.results)
    report.add(
        f"Medians of {args.rounds} rounds, all contestants interleaved in one run. CPU seconds are "
        "those of all ranks together, without waiting."
    )
    contest = Contest(prepare, device_type, args.rounds)
    for family in args.families:
        inputs = FAMILIES[family]
        for name in args.dtypes:
            dtype = getattr(torch, name)
            expected = expected_velocity(family, dtype, device_type)
            competing = contestants(args.ranks, inputs.num_passes)
            contest.measure(competing, family, dtype, device_type, expected)
            parameters = competing[0].figures["parameters"] / 1e6
            heading = f"## {family}, {name}, {parameters:.1f} M parameters"
            report.add(heading, f"{inputs.description}.", table(competing))
    report.write()


if __name__ == "__main__":
    main()
