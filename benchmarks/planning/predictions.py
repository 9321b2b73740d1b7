"""The planner's predictions for this machine against measurements, on one rank and on several.

    make benchmark-plan                          # two ranks
    python -m benchmarks.planning.predictions --ranks 2 --profile mine.yaml

Calibrates a profile first, as longtake bench does, unless one is given. Then measures denoising
steps of the 45 M model of benchmarks/denoise in every factorisation, interleaved in one run, with
one thread per rank. Writes a dated file with hardware and versions.
"""

from __future__ import annotations

from pathlib import Path

import torch
import yaml

from benchmarks.contest import Contest, Contestant
from benchmarks.denoise.hunyuan_video import GRID, MODEL, PADDED_TEXT, REAL_TEXT
from benchmarks.denoise.rank import expected_velocity, prepare
from benchmarks.report import Report, benchmark_parser
from longtake.configs.hardware import Hardware, load_hardware
from longtake.configs.request import VideoRequest
from longtake.engine.planning.plan_input import PlanInput
from longtake.engine.planning.prediction import predict
from longtake.engine.resolve.request import resolve
from longtake.engine.tools.bench.calibrate import calibrate
from longtake.engine.tools.bench.markdown import markdown_table
from longtake.parallel import ParallelDims
from longtake.pipelines.models.hunyuan_video.configs import TransformerConfig, VaeConfig
from longtake.pipelines.models.hunyuan_video.costs import HunyuanVideoCosts
from longtake.pipelines.models.hunyuan_video.defaults import HunyuanVideoDefaults
from longtake.pipelines.models.hunyuan_video.spec import HunyuanVideoSpec
from longtake.pipelines.spec import AutoencoderSpec
from longtake.pipelines.text_encoders.configs import ClipTextConfig, LlamaConfig


def plan_input(hardware: Hardware) -> PlanInput:
    """Planner input for the benchmark's model and latents."""
    transformer, vae = TransformerConfig(**MODEL), VaeConfig()
    spec = HunyuanVideoSpec(
        num_heads=transformer.num_attention_heads,
        head_size=transformer.attention_head_dim,
        size_multiple=16,
        frames_multiple=4,
        autoencoder=AutoencoderSpec(16, 8, 4, (16, 256, 256), (12, 192, 192)),
        defaults=HunyuanVideoDefaults(),
        flow_shift=7.0,
        patch=GRID.patch,
        costs=HunyuanVideoCosts(transformer, vae, LlamaConfig(), ClipTextConfig()),
    )
    _, _, frames, rows, columns = GRID.shape
    request = resolve(
        VideoRequest(
            prompt="any",
            num_frames=4 * (frames - 1) + 1,
            height=8 * rows,
            width=8 * columns,
            max_sequence_length=PADDED_TEXT,
            seed=0,
        ),
        spec,
    )
    return PlanInput(
        spec=spec,
        hardware=hardware,
        request=request,
        dtype="float32",
        vae_dtype="float32",
        text_tokens=REAL_TEXT,
    )


def factorisations(num_ranks: int) -> list[dict[str, int]]:
    """Parallel degrees for one rank, and all factorisations over ``num_ranks``."""
    return [{}] + [
        {"ring_degree": num_ranks // ulysses, "ulysses_degree": ulysses}
        for ulysses in range(1, num_ranks + 1)
        if num_ranks > 1 and num_ranks % ulysses == 0
    ]


def table(layouts: list[Contestant], hardware: Hardware) -> str:
    """Measured and predicted figures, in Markdown."""
    columns = ["layout", "measured s", "predicted s", "ratio"]
    columns += ["MB sent by a rank", "predicted", "peak MB", "predicted"]
    rows = []
    for each in layouts:
        predicted = predict(plan_input(hardware), ParallelDims(**each.degrees))
        memory = predicted.memory
        memory_bytes = memory.activations + memory.buffers
        figures = each.figures
        rows.append(
            [
                predicted.name,
                f"{each.median_s:.3f}",
                f"{predicted.step.seconds:.3f}",
                f"{predicted.step.seconds / each.median_s:.2f}",
                f"{figures['bytes_sent'] / 1e6:.3f}",
                f"{max(predicted.step_bytes) / 1e6:.3f}",
                f"{figures['peak_bytes'] / 1e6:.0f}",
                f"{memory_bytes / 1e6:.0f}",
            ]
        )
    return markdown_table(columns, rows)


def main() -> None:
    """Parse the command line and run the benchmark."""
    parser = benchmark_parser(__doc__, rounds=7)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--profile", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.profile is None:
        head_size = TransformerConfig(**MODEL).attention_head_dim
        hardware = calibrate(
            "cpu", args.ranks, head_size=head_size, rounds=args.rounds, on_measure=print
        )
    else:
        hardware = load_hardware(str(args.profile))
    subject = f"predictions on {args.ranks} ranks"
    report = Report(f"One step: {subject}", subject, "cpu", args.results)
    report.add("## The profile", "```yaml\n" + _yaml(hardware) + "```")
    layouts = [Contestant("longtake", degrees) for degrees in factorisations(args.ranks)]
    settings = ("hunyuan_video", torch.float32, "cpu")
    Contest(prepare, "cpu", args.rounds).measure(layouts, *settings, expected_velocity(*settings))
    parameters = layouts[0].figures["parameters"] / 1e6
    report.add(
        f"## float32, {parameters:.1f} M parameters, medians of {args.rounds} rounds",
        table(layouts, hardware),
    )
    report.write()


def _yaml(hardware: Hardware) -> str:
    """The profile in YAML, without names and sources."""
    figures = hardware.model_dump(mode="json", exclude={"names", "links"})
    plain = {
        name: value["value"] if isinstance(value, dict) and "value" in value else value
        for name, value in figures.items()
    }
    plain["flops_per_s"] = {k: v["value"] for k, v in figures["flops_per_s"].items()}
    plain["links"] = [
        {
            "name": link.name,
            "bytes_per_s": link.bytes_per_s.value,
            "latency_s": link.latency_s.value,
        }
        for link in hardware.links
    ]
    text: str = yaml.safe_dump(plain, sort_keys=False)
    return text


if __name__ == "__main__":
    main()
