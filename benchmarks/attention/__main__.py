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

import torch

from benchmarks.attention.implementations import BY_NAME
from benchmarks.attention.kernels import kernel_table
from benchmarks.attention.rank import Shape, prepare
from benchmarks.contest import Contest, Contestant, contest_table
from benchmarks.report import Report, benchmark_parser

BASELINE, OURS = "longtake one rank", "longtake ulysses"


def contestants(num_ranks: int, without: list[str]) -> list[Contestant]:
    """All implementations but those left out, on all ranks; the baseline on one."""
    axes = {"one rank": [], "ring": ["ring_degree"]}
    return [
        Contestant(
            each.package,
            dict.fromkeys(axes.get(each.method, ["ulysses_degree"]), num_ranks),
            each.method,
        )
        for name, each in BY_NAME.items()
        if name not in without
    ]


def table(competing: list[Contestant], num_ranks: int) -> str:
    """Results of one shape in Markdown. Ratios above 1 are slower than the baseline."""
    seconds = {each.name: each.median_s for each in competing if each.refusal is None}
    ratios = ["/ longtake ulysses", "/ (one rank / ranks)"]

    def cells(each: Contestant) -> list[str]:
        return [
            f"{each.median_s:.3f}",
            f"{each.median_s / seconds[OURS]:.3f}",
            f"{each.median_s / seconds[BASELINE] * num_ranks:.3f}",
            f"{each.figures['error']:.1e}" if BY_NAME[each.name].exact else "",
        ]

    return contest_table(competing, ["median s", *ratios, "max error"], cells)


def _shape(text: str) -> Shape:
    batch, num_tokens, num_heads, head_size = map(int, text.split("x"))
    return batch, num_tokens, num_heads, head_size


def main() -> None:
    """Parse the command line and run the benchmark."""
    parser = benchmark_parser(__doc__, rounds=7)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--shapes", nargs="+", type=_shape, help="BxSxNxH")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--without", nargs="+", default=[], choices=BY_NAME, help="contestants")
    parser.add_argument("--kernels", action="store_true", help="time the local kernels alone")
    args = parser.parse_args()
    device_type = "cuda" if torch.cuda.is_available() else "cpu"
    kernels = args.kernels or (device_type == "cuda" and torch.cuda.device_count() < args.ranks)
    torch.set_num_threads(1)

    subject = "local kernels" if kernels else f"attention on {args.ranks} ranks"
    report = Report(subject, subject, device_type, args.results)
    report.add(f"Medians of {args.rounds} rounds, all contestants interleaved in one run.")
    contest = Contest(prepare, device_type, args.rounds)
    for shape in args.shapes or [(1, 4096, 8, 64), (1, 8192, 24, 64)]:
        for name in args.dtypes:
            dtype = getattr(torch, name)
            if kernels:
                rows = kernel_table(shape, dtype, args.rounds, device_type)
            else:
                competing = contestants(args.ranks, args.without)
                contest.measure(competing, shape, dtype, device_type)
                rows = table(competing, args.ranks)
            report.add(f"## {'x'.join(map(str, shape))} {name}", rows)
    report.write()


if __name__ == "__main__":
    main()
