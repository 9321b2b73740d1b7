"""The planner's predictions against published measurements, and the fit of its figures.

    python -m benchmarks.planning.published          # both tables
    python -m benchmarks.planning.published --fit    # rates fitted to one-GPU rows, and links

HunyuanVideo end to end, with FlashAttention-2: a GPU's attention rate is fitted to the row of one
GPU, with all other times predicted; the rows of 2, 4 and 8 GPUs are predictions. Attention alone:
the USP paper's tables; the links of 8 L20 were fitted to the ratios between layouts.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.plan_input import hunyuan_video_input
from longtake.configs.hardware import Figure, Hardware, Share, load_hardware
from longtake.configs.request import VideoRequest
from longtake.engine.planning.attention import AttentionModel, Causal
from longtake.engine.planning.plan_input import PlanInput
from longtake.engine.planning.prediction import predict
from longtake.engine.tools.bench.markdown import markdown_table
from longtake.parallel import ParallelDims, TokenShards
from longtake.parallel.attention.traffic import AttentionTraffic

FOLDER = Path(__file__).parent / "data"

_FLASH_ATTENTION_2 = {"h100": {"attention_share": 0.3265, "convolution_share": 0.05}}
"""Rates of the published runs, for profiles whose own rates were measured with longtake."""

_PROFILES = {"8xL20-PCIe": "l20", "8xA100-NVLink": "a100-80g"}


@dataclass(frozen=True)
class Latency:
    """One published run of HunyuanVideo.

    Attributes:
        gpu: Name of the hardware profile.
        steps: Number of denoising steps.
        gpus: Number of GPUs.
        seconds: Published time, and the time from another source.
    """

    gpu: str
    steps: int
    gpus: int
    seconds: tuple[float, float]

    def predicted_s(self, hardware: Hardware | None = None) -> float:
        """Predicted time of text encoding, denoising and decoding on one GPU, in seconds."""
        dims = ParallelDims(ulysses_degree=self.gpus)
        prediction = predict(self.plan_input(hardware or as_published(self.gpu)), dims)
        return prediction.rendering_s

    def plan_input(self, hardware: Hardware) -> PlanInput:
        """Planner input of the run."""
        request = VideoRequest(prompt="a cat", num_inference_steps=self.steps, seed=0)
        return hunyuan_video_input(hardware, request, decode_ranks=1)

    def error(self, hardware: Hardware | None = None) -> float:
        """Relative error of the prediction against the closer source."""
        predicted = self.predicted_s(hardware)
        return min((predicted / each - 1 for each in self.seconds), key=abs)


@dataclass(frozen=True)
class Column:
    """One column of the USP paper's tables: causal attention in several layouts of 8 GPUs.

    Attributes:
        hardware: Name of the machine.
        sequence: Number of tokens.
        causal: How the causal mask is balanced over ranks.
        layouts: Ulysses and ring degrees.
        seconds: Published time of one attention call, by layout.
    """

    hardware: str
    sequence: int
    causal: Causal
    layouts: tuple[tuple[int, int], ...]
    seconds: tuple[float, ...]

    def predicted_s(self, hardware: Hardware | None = None) -> list[float]:
        """Predicted times by layout, for 32 heads of size 128 and 8 KV heads in bfloat16."""
        hardware = hardware or load_hardware(_PROFILES[self.hardware])
        predicted = []
        for ulysses_degree, ring_degree in self.layouts:
            dims = ParallelDims(ring_degree=ring_degree, ulysses_degree=ulysses_degree)
            shards = TokenShards.even(self.sequence, dims)
            traffic = AttentionTraffic(dims, shards, 32, 8, 128 * 2)
            model = AttentionModel(hardware, traffic, 128, "bfloat16", self.causal)
            predicted.append(model.time().seconds)
        return predicted

    def rank_of_best(self, hardware: Hardware | None = None) -> int:
        """Predicted rank of the layout with the best published time, from 1."""
        predicted = self.predicted_s(hardware)
        best = predicted[self.seconds.index(min(self.seconds))]
        return sorted(predicted).index(best) + 1

    def correlation(self, hardware: Hardware | None = None) -> float:
        """Spearman's rank correlation of published and predicted times."""
        return spearman(self.seconds, self.predicted_s(hardware))


def as_published(gpu: str) -> Hardware:
    """The profile of a GPU, with the rates of the published runs."""
    rates = _FLASH_ATTENTION_2.get(gpu, {})
    shares = {name: Share(value=each, source="published runs") for name, each in rates.items()}
    return load_hardware(gpu).model_copy(update=shares)


def latencies() -> list[Latency]:
    """All published runs."""
    return [
        Latency(
            row["gpu"],
            int(row["steps"]),
            int(row["gpus"]),
            (float(row["seconds"]), float(row["seconds_other_source"])),
        )
        for row in _rows("hunyuan_video_latency.csv")
    ]


def columns() -> list[Column]:
    """All columns of the attention tables."""
    rows = list(_rows("usp_attention_throughput.csv"))
    balances: list[tuple[str, Causal]] = [("basic_it_s", "contiguous"), ("balanced_it_s", "zigzag")]
    result = []
    for hardware, sequence in dict.fromkeys((row["hardware"], row["sequence"]) for row in rows):
        own = [row for row in rows if (row["hardware"], row["sequence"]) == (hardware, sequence)]
        layouts = tuple((int(row["ulysses_degree"]), int(row["ring_degree"])) for row in own)
        for name, causal in balances:
            seconds = tuple(1 / float(row[name]) for row in own)
            result.append(Column(hardware, int(sequence), causal, layouts, seconds))
    return result


def spearman(ones: Sequence[float], others: Sequence[float]) -> float:
    """Spearman's rank correlation; ties get the mean of their ranks."""
    first, second = _ranks(ones), _ranks(others)
    mean = (len(ones) - 1) / 2
    products = sum((a - mean) * (b - mean) for a, b in zip(first, second, strict=True))
    squares = [sum((each - mean) ** 2 for each in ranks) for ranks in (first, second)]
    return products / math.sqrt(squares[0] * squares[1])


def fitted_attention_share(latency: Latency) -> float:
    """Share of peak attention throughput at which the prediction equals the published time."""
    hardware, low, high = as_published(latency.gpu), 0.01, 1.0
    for _ in range(40):
        share = (low + high) / 2
        trial = hardware.model_copy(update={"attention_share": Share(value=share, source="fitted")})
        if latency.predicted_s(trial) > latency.seconds[0]:
            low = share
        else:
            high = share
    return share


def fitted_links(hardware: str) -> tuple[float, float, float, float]:
    """Fit the attention efficiency and two link bandwidths to the ratios between layouts.

    Returns:
        Squared error of the log ratios, share of peak attention throughput, bytes/s of a port, and
        bytes/s of a link between switches or sockets.
    """
    ours = [column for column in columns() if column.hardware == hardware]
    profile = load_hardware(_PROFILES[hardware])
    over_pcie = len(profile.links) > 2
    shared = [20e9, 10e9, 5e9, 4e9, 3e9, 2e9] if over_pcie else [0.0]
    ports = [25e9, 20e9, 14e9, 10e9] if over_pcie else [250e9, 200e9, 150e9, 100e9, 60e9]
    trials = []
    for share, port, between in itertools.product((0.5, 0.6, 0.7, 0.8), ports, shared):
        links = [
            link.model_copy(
                update={
                    "bytes_per_s": Figure(
                        value=port if level == 0 else between or link.bytes_per_s.value,
                        source="fitted",
                    )
                }
            )
            for level, link in enumerate(profile.links)
        ]
        trial = profile.model_copy(
            update={
                "links": tuple(links),
                "attention_share": Share(value=share, source="fitted"),
            }
        )
        trials.append((sum(_ratio_error(column, trial) for column in ours), share, port, between))
    return min(trials)


def _ratio_error(column: Column, hardware: Hardware) -> float:
    logs = [
        math.log(predicted / published)
        for predicted, published in zip(column.predicted_s(hardware), column.seconds, strict=True)
    ]
    mean = sum(logs) / len(logs)
    return sum((each - mean) ** 2 for each in logs)


def _ranks(values: Sequence[float]) -> list[float]:
    return [
        sum(other < value for other in values) + (sum(other == value for other in values) - 1) / 2
        for value in values
    ]


def _rows(name: str) -> Iterator[dict[str, str]]:
    with (FOLDER / name).open() as file:
        yield from csv.DictReader(line for line in file if not line.startswith("#"))


def latency_table() -> str:
    """Published and predicted times of HunyuanVideo, in Markdown."""
    rows = []
    for each in latencies():
        published = " / ".join(f"{seconds:.0f}" for seconds in dict.fromkeys(each.seconds))
        figures = f"{each.predicted_s():.0f}", f"{100 * each.error():+.1f} %"
        rows.append([f"{each.gpus} {each.gpu}", str(each.steps), published, *figures])
    return markdown_table(["GPUs", "steps", "published s", "predicted s", "error"], rows)


def attention_table() -> str:
    """Published and predicted times of attention, in Markdown."""
    headings = ["hardware", "tokens", "causal", "published ms (U8, U4 R2, U2 R4, R8)"]
    headings += ["predicted ms", "best layout ranked", "Spearman"]
    rows = []
    for each in columns():
        published, predicted = (
            ", ".join(f"{1e3 * seconds:.1f}" for seconds in times)
            for times in (each.seconds, each.predicted_s())
        )
        shape = each.hardware, str(each.sequence), str(each.causal)
        ranking = str(each.rank_of_best()), f"{each.correlation():.2f}"
        rows.append([*shape, published, predicted, *ranking])
    return markdown_table(headings, rows)


def main() -> None:
    """Parse the command line and print the tables or the fit."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--fit", action="store_true")
    if parser.parse_args().fit:
        for each in latencies():
            if each.gpus == 1:
                print(f"{each.gpu}: attention_share {fitted_attention_share(each):.4f}")
        for hardware in _PROFILES:
            error, share, port, between = fitted_links(hardware)
            print(
                f"{hardware}: error {error:.3f}, efficiency {share}, port {port / 1e9} GB/s, "
                f"between {between / 1e9} GB/s"
            )
        return
    print(latency_table(), attention_table(), sep="\n\n")


if __name__ == "__main__":
    main()
