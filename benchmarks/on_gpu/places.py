"""One denoising step of the real HunyuanVideo with its weights in each place.

    python -m benchmarks.on_gpu.places
    python -m benchmarks.on_gpu.places --sizes 129x720x1280 --places resident streamed disk
    python -m benchmarks.on_gpu.places --device cpu --blocks 1 1 --sizes 1x64x64  # to try it

Random weights in bfloat16, loaded as a checkpoint's are: resident ones onto the device, streamed
ones into pinned host memory, from where two blocks at a time are on the device. All are in memory
together, and take turns in each round, in random order, after an untimed warmup. ``disk`` reads a
file of random weights that is written to a temporary folder. Reported are the time of a step, the
peak of the device's memory beside the planner's, and whether velocities are equal to the bit.
"""

from __future__ import annotations

import hashlib
import random
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import HunyuanVideoTransformer3DModel
from safetensors.torch import save_file

from benchmarks.memory import peak_memory
from benchmarks.on_gpu.plan_input import REAL_TEXT, Size, parse_size, plan_input
from benchmarks.plan_input import MODEL
from benchmarks.report import Report, benchmark_parser
from longtake.configs.fields.weights import WeightPlace
from longtake.engine.planning.hardware import hardware_here
from longtake.engine.planning.plan_input import PlanInput
from longtake.engine.planning.prediction import predict
from longtake.engine.planning.weights.places import Placement
from longtake.engine.tools.bench.markdown import markdown_table
from longtake.parallel import ParallelDims, World
from longtake.pipelines.layout import VideoLayout
from longtake.pipelines.loading.build import build_module
from longtake.pipelines.loading.checkpoint import Checkpoint
from longtake.pipelines.loading.files.tensor_files import Tensor
from longtake.pipelines.loading.plan import ComponentPlan
from longtake.pipelines.loading.tensor_source import SafetensorsSource, TensorSource
from longtake.pipelines.loading.transformer import Weights, load_transformer
from longtake.pipelines.models.hunyuan_video.transformer.denoiser import HunyuanVideoDenoiser
from longtake.pipelines.runtime.stepper import Step

SIZES = [(65, 544, 960), (129, 720, 1280)]
PLACES: tuple[WeightPlace, ...] = ("resident", "streamed")
_PATTERN_VALUES = 2**24


class RandomSource:
    """Random tensors, the same whenever and however they are read.

    Each is a range of one random pattern, repeated, which is as fast as a copy.

    Args:
        shapes: Shape of each tensor, by name.
    """

    label = "random weights"

    def __init__(self, shapes: Mapping[str, Sequence[int]]) -> None:
        self.tensors = {
            name: Tensor("BF16", tuple(shape), (0, 0)) for name, shape in shapes.items()
        }
        generator = torch.Generator().manual_seed(0)
        self._pattern = (0.02 * torch.randn(_PATTERN_VALUES, generator=generator)).bfloat16()

    def read(self, name: str, rows: slice | None = None) -> torch.Tensor:
        """A tensor, or a range of its rows."""
        shape = self.tensors[name].shape
        first, end, _ = (rows or slice(None)).indices(shape[0])
        row_values = torch.Size(shape[1:]).numel()
        own = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")
        begin, num_values = own + first * row_values, (end - first) * row_values
        parts, done = [], 0
        while done < num_values:
            at = (begin + done) % _PATTERN_VALUES
            parts.append(self._pattern[at : at + num_values - done])
            done += len(parts[-1])
        return torch.cat(parts).view(end - first, *shape[1:])


@dataclass
class Contestant:
    """A denoiser whose weights live in one place.

    Attributes:
        place: The place.
        denoiser: The denoiser.
        load_s: Seconds that loading took.
        seconds: Time of each timed step.
        velocity: Result of the first step.
        peak_bytes: Peak memory of a step above what is in use before it.
        weight_bytes: Device memory of the weights between steps.
    """

    place: WeightPlace
    denoiser: HunyuanVideoDenoiser
    load_s: float
    weight_bytes: int
    seconds: list[float] = field(default_factory=list)
    velocity: torch.Tensor | None = None
    peak_bytes: int = 0

    @classmethod
    def load(
        cls, place: WeightPlace, source: TensorSource, config: dict[str, Any], device: torch.device
    ) -> Contestant:
        """Load the transformer."""
        model = build_module(HunyuanVideoTransformer3DModel, config, "transformer")
        denoiser = HunyuanVideoDenoiser(model)
        start, before = time.perf_counter(), allocated(device)
        plan = ComponentPlan(torch.bfloat16, place)
        load_transformer(denoiser, model, Weights(source), World(device), plan)
        denoiser.chunk_feed_forwards()
        return cls(place, denoiser, time.perf_counter() - start, allocated(device) - before)

    def take_turn(self, tokens: torch.Tensor, step: Step, inputs: Any) -> None:
        """Run and time one step. The first is the warmup, whose memory is measured."""
        device = tokens.device
        synchronize(device)
        start = time.perf_counter()
        with self.denoiser.run_blocks.in_use(), peak_memory(device.type) as peak_bytes:
            velocity = self.denoiser(tokens, step, inputs)
            synchronize(device)
        if self.velocity is None:
            self.velocity, self.peak_bytes = velocity.cpu(), peak_bytes()
        else:
            self.seconds.append(time.perf_counter() - start)


def allocated(device: torch.device) -> int:
    """Bytes of the device's memory that tensors take; 0 on the CPU."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def run(competing: Sequence[Contestant], plan: PlanInput, rounds: int, device: torch.device) -> str:
    """Time, memory and equality of a step of one size, in Markdown."""
    layout = VideoLayout.of(plan.grid, ParallelDims(), None)
    generator = torch.Generator().manual_seed(1)
    streams = {
        name: torch.randn(shape, generator=generator).to(device, torch.bfloat16)
        for name, shape in {"text": (1, REAL_TEXT, 4096), "pooled": (1, 768)}.items()
    }
    tokens = layout.split(plan.grid.noise(seed=1)).to(device)
    step = Step(0, torch.tensor(900.0, device=device), 900.0)
    for number in range(1 + rounds):
        for each in random.sample(competing, len(competing)) if number else competing:
            inputs = each.denoiser.prepare(streams, layout, plan.request, {})
            each.take_turn(tokens, step, inputs)
    return table(competing)


def table(competing: Sequence[Contestant]) -> str:
    """The results of one size; afterwards the contestants have none."""
    first, rows = competing[0], []
    for each in competing:
        assert each.velocity is not None and first.velocity is not None
        median = statistics.median(each.seconds)
        rows.append(
            [
                each.place,
                f"{median:.3f}",
                f"{min(each.seconds):.3f}, {max(each.seconds):.3f}",
                f"{median / statistics.median(first.seconds):.3f}",
                f"{each.weight_bytes / 2**30:.2f}",
                f"{(each.weight_bytes + each.peak_bytes) / 2**30:.2f}",
                "yes" if torch.equal(each.velocity, first.velocity) else "no",
                f"{each.load_s:.1f}",
            ]
        )
    columns = ["weights", "median s", "from, to", f"/ {first.place}", "GiB between steps"]
    columns += ["peak GiB", f"equal to {first.place}", "load s"]
    for each in competing:
        each.seconds, each.velocity = [], None
    return markdown_table(columns, rows)


def source_of(place: WeightPlace, weights: RandomSource, folder: Path) -> TensorSource:
    """The source of a place's weights; a file for those that are read from disk."""
    if place != "disk":
        return weights
    path = folder / "weights.safetensors"
    save_file({name: weights.read(name) for name in weights.tensors}, path)
    return SafetensorsSource([path])


def main() -> None:
    """Parse the command line and run the benchmark."""
    parser = benchmark_parser(__doc__, rounds=3)
    parser.add_argument("--sizes", nargs="+", type=parse_size, default=SIZES)
    parser.add_argument("--places", nargs="+", default=PLACES)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--blocks", nargs=2, type=int, help="double- and single-stream blocks")
    args = parser.parse_args()
    device = torch.device(args.device, 0) if args.device == "cuda" else torch.device("cpu")
    config = Checkpoint.open(MODEL, configs_only=True).config("transformer")
    if args.blocks:
        config |= dict(zip(("num_layers", "num_single_layers"), args.blocks, strict=True))
    meta = build_module(HunyuanVideoTransformer3DModel, config, "transformer")
    weights = RandomSource({name: each.shape for name, each in meta.state_dict().items()})
    report = Report(
        "A step by place of the weights", "places of weights", device.type, args.results
    )
    report.add(f"Medians of {args.rounds} rounds, all places interleaved in one run.")
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        competing = [
            Contestant.load(place, source_of(place, weights, Path(folder)), config, device)
            for place in args.places
        ]
        for size in args.sizes:
            plan = plan_input(size, hardware_here(device.type))
            report.add(f"## {name_of(size)}", run(competing, plan, args.rounds, device))
            report.add(f"Planned: {planned(plan, args.places)}.")
            report.write()


def planned(plan: PlanInput, places: Sequence[WeightPlace]) -> str:
    """The planner's peak of a step in each place, and its seconds."""
    parts = []
    for place in places:
        prediction = predict(plan, ParallelDims(), Placement(place, "streamed"))
        memory = prediction.memory
        gib = (memory.weights + memory.slots + memory.activations) / 2**30
        parts.append(f"{place} {gib:.2f} GiB and {prediction.step.seconds:.3f} s")
    return ", ".join(parts)


def name_of(size: Size) -> str:
    """Frames, height and width of a video."""
    return "x".join(map(str, size))


if __name__ == "__main__":
    main()
