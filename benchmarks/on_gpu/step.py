"""One denoising step of the real HunyuanVideo transformer on one GPU: longtake and diffusers.

    python -m benchmarks.on_gpu.step
    python -m benchmarks.on_gpu.step --sizes 129x720x1280 --rounds 3 --profile measured.yaml

13 B random parameters in bfloat16, shared by the contestants; the GPU needs 80 GB. Each round runs
all contestants in random order, after an untimed warmup. Text is 256 tokens, of which 100 are not
padding. Also reported: GPU time by kind of kernel, and the planner's prediction from the profile of
this GPU or from a file written by bench --calibrate.
"""

from __future__ import annotations

import copy
import random
import statistics
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import HunyuanVideoTransformer3DModel
from torch.profiler import ProfilerActivity, profile

from benchmarks.denoise.hunyuan_video import GUIDANCE_SCALE, HunyuanVideoInputs, euler
from benchmarks.denoise.inputs import Step, longtake_step
from benchmarks.memory import peak_memory
from benchmarks.on_gpu.plan_input import (
    REAL_TEXT,
    Size,
    parse_size,
    plan_input,
    read_profiles,
)
from benchmarks.plan_input import MODEL
from benchmarks.report import Report, benchmark_parser
from longtake.configs.hardware import Hardware
from longtake.engine.planning.plan_input import PlanInput
from longtake.engine.planning.prediction import predict
from longtake.engine.tools.bench.markdown import markdown_table
from longtake.parallel import ParallelDims
from longtake.pipelines.loading.checkpoint import Checkpoint
from longtake.pipelines.spec import LatentGrid

PADDED_TEXT = 256
TEXT_WIDTH, POOLED_WIDTH = 4096, 768
SIZES = [(65, 544, 960), (129, 720, 1280)]


@dataclass
class Contestant:
    """One implementation of the step.

    Attributes:
        name: Label in tables.
        step: Runs one step.
        seconds: Time of each timed step.
        velocity: Result of the first step.
        peak_bytes: Peak memory above weights and inputs.
        kernels: GPU time of the first step, by kind of kernel.
        refusal: Reason why the contestant cannot run; None if it can.
    """

    name: str
    step: Step
    seconds: list[float] = field(default_factory=list)
    velocity: torch.Tensor | None = None
    peak_bytes: int = 0
    kernels: str = ""
    refusal: str | None = None

    def warm_up(self) -> None:
        """Run the warmup step, measuring memory and kernels."""
        try:
            with (
                peak_memory("cuda") as peak_bytes,
                profile(activities=[ProfilerActivity.CUDA], acc_events=True) as p,
            ):
                self.velocity = self.step().float()
                torch.cuda.synchronize()
        except torch.OutOfMemoryError as error:
            self.refusal = str(error).split(". ")[0]
            return
        self.peak_bytes = peak_bytes()
        self.kernels = time_by_kind(p)

    def take_turn(self) -> None:
        """Run and time one step."""
        torch.cuda.synchronize()
        start = time.perf_counter()
        self.step()
        torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - start)


def time_by_kind(profiled: Any) -> str:
    """GPU time of a step by kind of kernel, and the name of the attention kernel."""
    seconds, attention_kernel = {"attention": 0.0, "matrix products": 0.0, "all else": 0.0}, ""
    for each in sorted(profiled.key_averages(), key=lambda each: each.device_time_total):
        kind = "all else"
        if any(word in each.key for word in ("sdpa", "fmha", "flash")):
            kind, attention_kernel = "attention", each.key[:60]
        elif any(word in each.key for word in ("nvjet", "gemm", "cutlass", "xmma")):
            kind = "matrix products"
        seconds[kind] += each.device_time_total / 1e6
    return (
        ", ".join(f"{kind} {s:.2f} s" for kind, s in seconds.items()) + f" (`{attention_kernel}`)"
    )


def transformer(device: torch.device) -> HunyuanVideoTransformer3DModel:
    """The released architecture with random weights."""
    config = Checkpoint.open(MODEL, configs_only=True).config("transformer")
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    with device:
        model = HunyuanVideoTransformer3DModel.from_config(config)
    torch.set_default_dtype(before)
    return model.eval().requires_grad_(False)


def twin(model: HunyuanVideoTransformer3DModel) -> HunyuanVideoTransformer3DModel:
    """Another transformer with the same weights, whose modules longtake may wrap."""
    with torch.device("meta"):
        other = HunyuanVideoTransformer3DModel.from_config(model.config)
    other.load_state_dict(model.state_dict(), assign=True)
    other.rope = model.rope
    return other.eval().requires_grad_(False)


def contestants(model: HunyuanVideoTransformer3DModel, size: Size) -> list[Contestant]:
    """Contestants with the same weights and inputs.

    Args:
        model: The transformer.
        size: Frames, height and width of the video.
    """
    frames, height, width = size
    grid = LatentGrid((1, 16, (frames - 1) // 4 + 1, height // 8, width // 8), (1, 2, 2))
    generator = torch.Generator().manual_seed(1)
    latents, text, pooled = (
        torch.randn(shape, generator=generator).to(model.device)
        for shape in (grid.shape, (1, PADDED_TEXT, TEXT_WIDTH), (1, POOLED_WIDTH))
    )
    text[:, REAL_TEXT:] = 0
    half = text.to(model.dtype)
    inputs = HunyuanVideoInputs(
        model=model,
        latents=latents,
        scheduler=euler(model.device),
        guidance_scale=GUIDANCE_SCALE,
        grid=grid,
        text=half,
        pooled=pooled.to(model.dtype),
        real_text=REAL_TEXT,
    )
    padded = replace(inputs, scheduler=copy.deepcopy(inputs.scheduler))
    cut = replace(padded, scheduler=copy.deepcopy(inputs.scheduler), text=half[:, :REAL_TEXT])
    step = longtake_step(replace(inputs, model=twin(model)), {})
    return [
        Contestant("longtake", step),
        Contestant("diffusers, padded text", padded.reference_step()),
        Contestant("diffusers, text cut to length", cut.reference_step()),
    ]


def operations(inputs: PlanInput) -> float:
    """Number of floating-point operations of a step."""
    costs, tokens = inputs.costs, inputs.grid.num_tokens + REAL_TEXT
    heads = costs.attention
    attention = 4 * tokens**2 * heads.num_heads * heads.head_size * heads.num_attentions
    return attention + costs.transformer_pass(tokens, REAL_TEXT, 2).linear_flops


def table(competing: list[Contestant]) -> str:
    """Results in Markdown. Ratios above 1 are slower than longtake. Differences are relative to the
    velocity of diffusers with padded text, as root mean squares."""
    ours, expected = competing[0], competing[1].velocity
    columns = "contestant", "median s", "from, to", "/ longtake", "difference", "peak GB"
    rows = []
    for each in competing:
        if each.refusal is not None:
            rows.append([each.name, f"cannot: {each.refusal}"])
            continue
        median, difference = statistics.median(each.seconds), ""
        if expected is not None and each.velocity is not None:
            square = (each.velocity - expected).square().mean() / expected.square().mean()
            difference = f"{square.sqrt().item():.1e}"
        rows.append(
            [
                each.name,
                f"{median:.3f}",
                f"{min(each.seconds):.3f}, {max(each.seconds):.3f}",
                f"{median / statistics.median(ours.seconds):.3f}",
                difference,
                f"{each.peak_bytes / 1e9:.2f}",
            ]
        )
    return markdown_table(columns, rows)


def predictions(size: Size, ours: Contestant, profiles: list[Hardware]) -> str:
    """Measured and predicted figures of longtake's step, in Markdown."""
    measured = statistics.median(ours.seconds)
    rows = []
    for hardware in profiles:
        inputs = plan_input(size, hardware)
        prediction = predict(inputs, ParallelDims())
        memory_bytes = prediction.memory.activations + prediction.memory.buffers
        rows.append(
            [
                hardware.description,
                f"{prediction.step.seconds:.3f}",
                f"{prediction.step.seconds / measured:.2f}",
                f"{memory_bytes / 1e9:.2f}",
                f"{memory_bytes / ours.peak_bytes:.2f}",
            ]
        )
    columns = "profile", "predicted s", "/ measured", "peak GB", "/ measured"
    flops = operations(inputs)
    rate = (
        f"{flops / 1e12:.0f} TFLOP, of which longtake does {flops / measured / 1e12:.0f} a second."
    )
    return f"{markdown_table(columns, rows)}\n\n{rate}"


def main() -> None:
    """Parse the command line and run the benchmark."""
    parser = benchmark_parser(__doc__, rounds=3)
    parser.add_argument("--sizes", nargs="+", type=parse_size, default=SIZES)
    parser.add_argument("--profile", type=Path, help="written by longtake bench --calibrate")
    args = parser.parse_args()
    profiles = read_profiles(args.profile)
    report = Report("A step of HunyuanVideo on one GPU", "a real step", "cuda", args.results)
    report.add(f"Medians of {args.rounds} rounds, all contestants interleaved in one run.")
    with torch.no_grad():
        model = transformer(torch.device("cuda", 0))
        for size in args.sizes:
            competing = contestants(model, size)
            for each in competing:
                each.warm_up()
            for _ in range(args.rounds):
                for each in random.sample(competing, len(competing)):
                    if each.refusal is None:
                        each.take_turn()
            report.add(f"## {'x'.join(map(str, size))}", table(competing))
            if competing[0].refusal is None:
                report.add(predictions(size, competing[0], profiles))
            kernels = [f"- {each.name}: {each.kernels}" for each in competing if each.kernels]
            report.add("GPU time of the first step:", "\n".join(kernels))
            report.write()


if __name__ == "__main__":
    main()
