"""Decoding latents in tiles: longtake against its peers, interleaved in one run.

    make benchmark-decode                   # the peers' environment, two ranks
    python -m benchmarks.decode --ranks 2 --rounds 7

All contestants decode the same latents with the same autoencoder and tiling, one thread per rank.
Prints a table and writes it to a dated file with hardware and versions.
"""

from __future__ import annotations

import torch

from benchmarks.contest import Contest, Contestant, contest_table
from benchmarks.decode.rank import Setup, prepare
from benchmarks.report import Report, benchmark_parser


def contestants(num_ranks: int) -> list[Contestant]:
    """Contestants on one rank and on all ranks. The first, diffusers, is the baseline."""
    ranks = {"ulysses_degree": num_ranks}
    return [
        Contestant("diffusers", {}),
        Contestant("longtake", {}),
        Contestant("longtake", ranks),
        Contestant("cache-dit", ranks),
    ]


def table(competing: list[Contestant]) -> str:
    """Results in Markdown. The second figure is the speedup over diffusers on one rank."""

    def cells(each: Contestant) -> list[str]:
        return [
            f"{each.median_s:.3f}",
            f"{competing[0].median_s / each.median_s:.3f}",
            f"{each.figures['first_s']:.2f}",
            f"{each.figures['error']:.1e}",
        ]

    columns = ["median s", "diffusers / it", "first frame s", "max error"]
    return contest_table(competing, columns, cells)


def main() -> None:
    """Parse the command line and run the benchmark."""
    parser = benchmark_parser(__doc__, rounds=7)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--size", type=int, nargs=3, default=(33, 224, 288))
    parser.add_argument("--tile-size", type=int, nargs=3, default=(16, 128, 128))
    parser.add_argument("--tile-stride", type=int, nargs=3, default=(12, 96, 96))
    parser.add_argument("--channels", type=int, nargs="+", default=(16, 32, 64, 64))
    parser.add_argument("--dtypes", nargs="+", default=["float32"])
    args = parser.parse_args()
    device_type = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(1)

    subject = f"decoding on {args.ranks} ranks"
    report = Report(subject.capitalize(), subject, device_type, args.results)
    report.add(
        f"Medians of {args.rounds} rounds, all contestants interleaved in one run. Frames, height "
        f"and width {args.size}, in tiles of {args.tile_size}, {args.tile_stride} apart; channels "
        f"{args.channels}."
    )
    contest = Contest(prepare, device_type, args.rounds)
    for dtype in args.dtypes:
        setup = Setup(
            tuple(args.channels),
            tuple(args.size),
            tuple(args.tile_size),
            tuple(args.tile_stride),
            dtype,
        )
        competing = contestants(args.ranks)
        contest.measure(competing, setup, device_type)
        report.add(f"## {dtype}", table(competing))
    report.write()


if __name__ == "__main__":
    main()
