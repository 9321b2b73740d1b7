"""Attention across ranks: longtake against its peers, interleaved in one run.

    make benchmark                            # the peers' environment, two ranks, all settings
    python -m benchmarks.attention --ranks 4 --shapes 1x4096x8x64 --dtypes float32 --passes train
    python -m benchmarks.attention --kernels  # the local kernels of one device, as with one GPU

A setting is a shape, a dtype, a mask (full or causal) and passes (the forward pass, or train: the
forward and the backward pass). Every contestant has its own ranks, which sleep while others run, so
that contestants cannot affect each other and a crash is reported. In each round every contestant
runs once, in random order. Baselines are one process (torch's own attention, and longtake's), and
ranks that compute their shares concurrently without communication. One thread per rank. Prints one
table per setting and writes all of them to a dated file with hardware and versions.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import product

import torch

from benchmarks.attention.implementations import BY_NAME
from benchmarks.attention.kernels import kernel_table
from benchmarks.attention.rank import prepare
from benchmarks.attention.reference import Reference
from benchmarks.attention.setting import Setting, Shape
from benchmarks.contest import Contest, Contestant, contest_table
from benchmarks.report import Report, benchmark_parser
from longtake.engine.tools.bench.markdown import markdown_table

_OURS = {
    "one rank": "longtake one rank",
    "ulysses": "longtake ulysses",
    "ring": "longtake ring",
}
"""What a contestant is compared with, by family."""


def contestants(num_ranks: int, without: Sequence[str]) -> list[Contestant]:
    """All implementations but those left out, on all ranks; the baselines on one."""
    return [
        Contestant(
            each.package,
            {} if each.family == "one rank" else {f"{each.family}_degree": num_ranks},
            each.method,
        )
        for name, each in BY_NAME.items()
        if name not in without
    ]


def table(competing: Sequence[Contestant], num_ranks: int, *, train: bool) -> str:
    """Results of one setting in Markdown. Ratios above 1 are slower than longtake's."""
    seconds = {each.name: each.median_s for each in competing if each.refusal is None}
    columns = ["median s", "CPU s", "/ longtake", "/ (one rank / ranks)", "max error"]

    def ratio(each: Contestant, baseline: str, factor: int = 1) -> str:
        known = baseline in seconds
        return f"{each.median_s / seconds[baseline] * factor:.3f}" if known else ""

    def cells(each: Contestant) -> list[str]:
        implementation = BY_NAME[each.name]
        errors = [each.figures["error"], *([each.figures["gradient_error"]] if train else [])]
        return [
            f"{each.median_s:.3f}",
            f"{each.median_cpu_s:.3f}",
            ratio(each, _OURS[implementation.family]),
            ratio(each, _OURS["one rank"], num_ranks),
            *(f"{error:.1e}" if implementation.exact else "" for error in errors),
        ]

    return contest_table(competing, [*columns, *(["gradient error"] if train else [])], cells)


def causal_table(full: Sequence[Contestant], causal: Sequence[Contestant]) -> str:
    """Time with a causal mask over that without, of the contestants that ran both."""
    medians = {each.name: each.median_s for each in full if each.refusal is None}
    rows = [
        [each.name, f"{each.median_s / medians[each.name]:.3f}"]
        for each in causal
        if each.refusal is None and each.name in medians
    ]
    return markdown_table(["contestant", "causal / full"], rows)


def notes(competing: Sequence[Contestant]) -> list[str]:
    """The footnotes of the contestants, each once."""
    by_note: dict[str, list[str]] = {}
    for each in competing:
        if BY_NAME[each.name].note:
            by_note.setdefault(BY_NAME[each.name].note, []).append(each.name)
    return [f"{', '.join(names)}: {note}." for note, names in by_note.items()]


def compare(args: argparse.Namespace, report: Report, shape: Shape, device_type: str) -> None:
    """Measure all settings of a shape across ranks."""
    contest = Contest(prepare, device_type, args.rounds)
    for dtype in args.dtypes:
        by_mask: dict[tuple[str, str], list[Contestant]] = {}
        for mask in args.masks:
            causal, train = mask == "causal", "train" in args.passes
            reference = Reference.of(shape, dtype, causal=causal, train=train)
            for passes in args.passes:
                setting = Setting(shape, dtype, causal, passes == "train", device_type)
                competing = contestants(args.ranks, args.without)
                contest.measure(competing, setting, reference)
                by_mask[mask, passes] = competing
                report.add(f"## {setting.name}", table(competing, args.ranks, train=setting.train))
        for passes in args.passes if len(args.masks) == 2 else ():
            both = [by_mask[mask, passes] for mask in ("full", "causal")]
            name = Setting(shape, dtype, True, passes == "train", device_type).name
            report.add(f"### {name}, over full", causal_table(*both))


def main() -> None:
    """Parse the command line and run the benchmark."""
    parser = benchmark_parser(__doc__, rounds=7)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument(
        "--shapes",
        nargs="+",
        type=Shape.parse,
        default=[Shape.parse("1x4096x8x64"), Shape.parse("1x8192x24/8x64")],
        help="BxSxNxH, or BxSxN/MxH with M KV heads",
    )
    parser.add_argument("--dtypes", nargs="+", type=_dtype, default=[torch.float32])
    parser.add_argument("--masks", nargs="+", default=["full", "causal"], choices=_MASKS)
    parser.add_argument("--passes", nargs="+", default=["forward", "train"], choices=_PASSES)
    parser.add_argument("--without", nargs="+", default=[], choices=BY_NAME, help="contestants")
    parser.add_argument("--kernels", action="store_true", help="time the local kernels alone")
    args = parser.parse_args()
    device_type = "cuda" if torch.cuda.is_available() else "cpu"
    kernels = args.kernels or (device_type == "cuda" and torch.cuda.device_count() < args.ranks)
    torch.set_num_threads(1)

    subject = "local kernels" if kernels else f"attention on {args.ranks} ranks"
    report = Report(subject, subject, device_type, args.results)
    report.add(f"Medians of {args.rounds} rounds, all contestants interleaved in one run.")
    if not kernels:
        report.add(*notes(contestants(args.ranks, args.without)))
    for shape in args.shapes:
        if not kernels:
            compare(args, report, shape, device_type)
            continue
        for dtype, mask, passes in product(args.dtypes, args.masks, args.passes):
            setting = Setting(shape, dtype, mask == "causal", passes == "train", device_type)
            report.add(f"## {setting.name}", kernel_table(setting, args.rounds))
    report.write()


_MASKS, _PASSES = ("full", "causal"), ("forward", "train")


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{name!r} is no dtype")
    return dtype


if __name__ == "__main__":
    main()
