"""Loading a transformer of 4 GB, with and without a LoRA, over reading its files once.

    python -m benchmarks.loading
    python -m benchmarks.loading --device cuda --place streamed --threads 8
    python -m benchmarks.loading --gigabytes 0.5 --rounds 1  # to try it

A HunyuanVideo of the real width with as many blocks as make 4 GB in bfloat16, and a LoRA of rank 64
for every linear layer of its blocks, fused while loading. Each measurement is a process of its own,
in random order in each round. "Cold" files are dropped from the page cache before, so that they
come from the disk; "warm" ones were read just before. Targets: cold at most 1.15 times of reading,
and at most 2 GB of host memory beside the weights that stay there.
"""

from __future__ import annotations

import random
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path

from benchmarks.loading.case import Case, Measured, measure_apart
from benchmarks.loading.model import MadeUpModel
from benchmarks.report import Report, benchmark_parser
from longtake.configs.fields.weights import WeightPlace
from longtake.engine.tools.bench.markdown import markdown_table

Measurements = dict[str, list[Measured]]


def cases(model: MadeUpModel, place: WeightPlace, device: str, threads: int) -> dict[str, Case]:
    """Everything that is measured, by name."""
    found = {}
    for state in ("cold", "warm"):
        for lora in (None, str(model.lora)):
            case = Case(
                weights=str(model.weights),
                lora=lora,
                config=model.config,
                place=place,
                device=device,
                cold=state == "cold",
                threads=threads,
            )
            ending = f"{', with the LoRA' if lora else ''}, {state}"
            found[f"read{ending}"] = replace(case, config=None)
            found[f"load{ending}"] = case
    return found


def table(measured: Measurements, held_bytes: int) -> str:
    """Medians of all cases in Markdown; "over reading" is to the reading of the same files."""
    rows = []
    for name, each in measured.items():
        seconds = [case.seconds for case in each]
        reading = statistics.median(c.seconds for c in measured[name.replace("load", "read")])
        peak = max(case.peak_bytes for case in each)
        beside = peak - (held_bytes if name.startswith("load") else 0)
        rows.append(
            [
                name,
                f"{statistics.median(seconds):.2f}",
                f"{min(seconds):.2f}, {max(seconds):.2f}",
                f"{statistics.median(seconds) / reading:.2f}",
                f"{statistics.median(case.cpu_s for case in each):.2f}",
                f"{beside / 1e9:.2f}",
            ]
        )
    columns = ["files", "median s", "from, to", "over reading", "CPU s", "GB beside the weights"]
    return markdown_table(columns, rows)


def main() -> None:
    """Parse the command line and run the benchmark."""
    parser = benchmark_parser(__doc__, rounds=3)
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument("--place", default="resident", choices=["resident", "streamed", "disk"])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--folder", type=Path, help="folder for the files; a temporary one if left")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        model = MadeUpModel.write(Path(folder), args.gigabytes * 1e9)
        sizes = [file.stat().st_size for file in (model.weights, model.lora)]
        report = Report("Loading", "loading", args.device, args.results)
        report.add(
            f"A transformer of {sizes[0] / 1e9:.2f} GB and a LoRA of {sizes[1] / 1e9:.2f} GB, "
            f"{args.place} on {args.device}, {args.threads} threads. Medians of {args.rounds} "
            "rounds."
        )
        named = cases(model, args.place, args.device, args.threads)
        measured: Measurements = {name: [] for name in named}
        for _ in range(args.rounds):
            for name in random.sample([*named], len(named)):
                measured[name].append(measure_apart(named[name]))
        on_host = args.device == "cpu" or args.place == "streamed"
        report.add(table(measured, sizes[0] if on_host and args.place != "disk" else 0))
        report.write()


if __name__ == "__main__":
    main()
