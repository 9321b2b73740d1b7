"""What weights in fewer bits cost the demo models: errors of latents and frames, and the judge.

    python -m benchmarks.storage
    python -m benchmarks.storage --videos 4 --storages float8  # to try it

Every prompt and picture of ``make quality`` is rendered with its seed in float32, and with the
weights of blocks in each storage. Rendering in bfloat16 shows what is usual on a GPU. Then the
encoding and decoding of a weight are timed on one core.
"""

from __future__ import annotations

import tempfile
import timeit
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import ne
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from PIL import Image

from benchmarks.report import Report, benchmark_parser
from longtake import VideoEngine, VideoRequest
from longtake.configs.fields.weights import StorageDtype
from longtake.engine.media.arrays import Array
from longtake.engine.tools.bench.markdown import markdown_table
from longtake.engine.tools.differences import max_error, psnr_db
from longtake.pipelines import registry
from longtake.pipelines.loading.checkpoint import Checkpoint
from longtake.pipelines.quantization.codes import decode, encode
from tests.quality.judge import Verdict, judge
from tests.quality.pictures import pictures
from tests.quality.prompts import prompts

MODELS = ("demo", "demo-i2v")
REFERENCE = "float32"
PROPERTIES = ("color", "shape", "direction", "background")

Case = tuple[VideoRequest, Verdict]


@dataclass(frozen=True)
class Rendered:
    """One video.

    Attributes:
        latents: Its latents.
        frames: Its frames, ``[F, H, W, 3]`` in [0, 1].
    """

    latents: Array
    frames: Array


def cases_of(model: str, folder: Path) -> list[Case]:
    """Requests and the expected verdicts; pictures are written to a folder."""
    if model == "demo":
        return [
            (VideoRequest(prompt=prompt, seed=number), verdict)
            for number, (prompt, verdict) in enumerate(prompts())
        ]
    cases = []
    for number, (picture, prompt, verdict) in enumerate(pictures()):
        path = folder / f"{number}.png"
        Image.fromarray(picture).save(path)
        cases.append((VideoRequest(prompt=prompt, image=path, seed=number), verdict))
    return cases


def render(model: str, cases: Sequence[Case], **settings: Any) -> list[Rendered]:
    """The videos of all cases."""
    with VideoEngine.from_pretrained(model, device="cpu", **settings) as engine:
        videos = [engine.generate(request) for request, _ in cases]
    return [Rendered(video.latents, video.frames) for video in videos]


def row(
    videos: Sequence[Rendered], references: Sequence[Rendered], cases: Sequence[Case]
) -> list[str]:
    """Errors against the reference, and the judge's verdicts, as cells of a table."""
    pairs = list(zip(videos, references, strict=True))
    errors = [max_error(own.latents, other.latents) for own, other in pairs]
    decibels = [psnr_db(own.frames, other.frames, 1.0) for own, other in pairs]
    verdicts, before = ([judge(each.frames) for each in some] for some in (videos, references))
    judged = [(verdict, expected) for verdict, (_, expected) in zip(verdicts, cases, strict=True)]
    right = {
        name: [getattr(own, name) == getattr(other, name) for own, other in judged]
        for name in PROPERTIES
    }
    return [
        f"{max(errors):.2g}",
        f"{np.mean(errors):.2g}",
        f"{np.mean(decibels):.1f}",
        f"{min(decibels):.1f}",
        *(f"{np.mean(each):.1%}" for each in right.values()),
        f"{sum(map(ne, verdicts, before))} of {len(cases)}",
    ]


def measured(model: str, storages: Sequence[StorageDtype], num_videos: int | None) -> str:
    """A table of one model."""
    costs = registry.inspect(Checkpoint.open(model)).costs
    assert costs is not None
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        cases = cases_of(model, Path(folder))[:num_videos]
        references = render(model, cases, dtype=REFERENCE)
        plans: Mapping[str, dict[str, Any]] = {
            REFERENCE: {},
            "bfloat16": {"dtype": "bfloat16"},
            **{each: {"dtype": REFERENCE, "storage_dtype": each} for each in storages},
        }
        for name, settings in plans.items():
            videos = references if name == REFERENCE else render(model, cases, **settings)
            element = 2 if name == "bfloat16" else 4
            held = costs.transformer_bytes(element, storage=settings.get("storage_dtype"))
            rows.append([name, f"{held / 2**20:.1f}", *row(videos, references, cases)])
            print(" ".join(rows[-1]), flush=True)
    header = ["weights", "MiB", "largest error", "mean", "PSNR dB", "lowest", *PROPERTIES]
    return markdown_table([*header, "verdicts changed"], rows)


def rates(storages: Sequence[StorageDtype]) -> str:
    """A table of values that one core encodes and decodes in a second, the best of five times."""
    torch.set_num_threads(1)
    weight, rows = torch.randn(1024, 3072).bfloat16(), []
    for storage in storages:
        codes, scales = encode(weight, storage)
        arguments = (codes, scales, weight.shape[1], storage, torch.bfloat16)
        rates = (
            weight.numel() / min(timeit.repeat(call, number=1, repeat=5)) / 1e6
            for call in (partial(encode, weight, storage), partial(decode, *arguments))
        )
        rows.append([storage, *(f"{rate:.0f}" for rate in rates)])
    return markdown_table(["weights", "encoded, million/s", "decoded, million/s"], rows)


def main() -> None:
    """Parse the command line and run the benchmark."""
    parser = benchmark_parser(__doc__, rounds=1)
    parser.add_argument("--models", nargs="*", default=MODELS, choices=MODELS)
    parser.add_argument("--storages", nargs="+", default=get_args(StorageDtype))
    parser.add_argument("--videos", type=int, help="videos of each model; all by default")
    args = parser.parse_args()
    report = Report("Loss of weights in fewer bits", "weights in fewer bits", "cpu", args.results)
    report.add(
        "Errors are of latents and frames against the same video in float32. The properties are "
        "the shares of videos in which the judge of `make quality` sees what the prompt asks for."
    )
    for model in args.models:
        report.add(f"## {model}", measured(model, args.storages, args.videos))
        report.write()
    report.add("## Rates of one core, from and to bfloat16", rates(args.storages))
    report.write()


if __name__ == "__main__":
    main()
