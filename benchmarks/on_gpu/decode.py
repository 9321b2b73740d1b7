"""Decoding with the real HunyuanVideo autoencoder on one GPU: longtake and diffusers.

    python -m benchmarks.on_gpu.decode
    python -m benchmarks.on_gpu.decode --size 129x720x1280 --rounds 1 --profile measured.yaml

The released architecture in float16 with random weights and the released tiling. The contestants
decode the same latents to frames on the host. Each round runs all of them in random order, after an
untimed warmup. Also reported: longtake's memory estimate for one call of the decoder, and the
planner's prediction.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLHunyuanVideo
from torch import nn

from benchmarks.memory import peak_memory
from benchmarks.on_gpu.plan_input import parse_size, plan_input, read_profiles
from benchmarks.plan_input import MODEL
from benchmarks.report import Report, benchmark_parser
from longtake.configs.request import ResolvedRequest
from longtake.engine.planning.prediction import predict
from longtake.engine.tools.bench.markdown import markdown_table
from longtake.parallel import ParallelDims, World
from longtake.pipelines.codec.decode import TileRun, decode_videos
from longtake.pipelines.codec.memory import peak_bytes
from longtake.pipelines.loading.checkpoint import Checkpoint
from longtake.pipelines.models.hunyuan_video.codec.autoencoder import HunyuanVideoDecoder

Decode = Callable[[], list[torch.Tensor]]
"""Decodes the video to frames."""


def autoencoder(device: torch.device) -> Any:
    """The released architecture with random weights."""
    config = Checkpoint.open(MODEL, configs_only=True).config("vae")
    torch.manual_seed(0)
    with device:
        vae = AutoencoderKLHunyuanVideo.from_config(config)
    vae.enable_tiling()
    # diffusers' own `to` warns about modules kept in float32, but the VAE has none
    return nn.Module.to(vae.eval().requires_grad_(False), torch.float16)


def contestants(
    vae: Any, decoder: HunyuanVideoDecoder, latents: torch.Tensor
) -> Mapping[str, Decode]:
    """Contestants by name. The first, diffusers, is the reference."""

    def theirs() -> list[torch.Tensor]:
        scaled = latents.to(vae.dtype) / vae.config.scaling_factor
        pixels = vae.decode(scaled, return_dict=False)[0][0]
        return list((pixels / 2 + 0.5).clamp(0, 1).permute(1, 2, 3, 0).float().cpu())

    def ours(tiles_at_once: int | None) -> list[torch.Tensor]:
        frames: list[torch.Tensor] = []
        decode_videos(
            TileRun(decoder, latents, World(latents.device), tiles_at_once=tiles_at_once),
            lambda video, index, frame: frames.append(frame.clone()),
        )
        return frames

    return {
        "diffusers": theirs,
        "longtake, as many tiles at once as fit": lambda: ours(None),
        "longtake, one tile at a time": lambda: ours(1),
    }


def table(competing: Mapping[str, Decode], rounds: int) -> str:
    """Time, error and memory of all contestants, in Markdown."""
    expected: list[torch.Tensor] = []
    errors, peaks = {}, {}
    for name, decode in competing.items():
        with peak_memory("cuda") as peak:
            frames = decode()
        peaks[name], expected = peak(), expected or frames
        pairs = zip(frames, expected, strict=True)
        errors[name] = max((one - other).abs().max().item() for one, other in pairs)
    seconds: dict[str, list[float]] = {name: [] for name in competing}
    for _ in range(rounds):
        for name in random.sample(list(competing), len(competing)):
            start = time.perf_counter()
            competing[name]()
            torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - start)
    return markdown_table(
        ["contestant", "median s", "max error", "peak GB"],
        [
            [
                name,
                f"{statistics.median(seconds[name]):.3f}",
                f"{errors[name]:.1e}",
                f"{peaks[name] / 1e9:.2f}",
            ]
            for name in competing
        ],
    )


def memory(decoder: HunyuanVideoDecoder, latents: torch.Tensor) -> str:
    """Estimated and measured peak memory of one call of the decoder, in Markdown."""
    cells = [max(span.input_size for span in axis) for axis in decoder.spans(latents.shape[2:])]
    rows = []
    for count, *size in [*((count, *cells) for count in (1, 2, 4)), (1, cells[0], 64, 64)]:
        tiles = latents.new_zeros(count, latents.shape[1], *size)
        estimated = peak_bytes(decoder.run, tuple(tiles.shape), latents.device)
        with peak_memory("cuda") as peak:
            decoder.run(tiles)
        figures = f"{estimated / 1e9:.2f}", f"{peak() / 1e9:.2f}", f"{peak() / estimated:.2f}"
        rows.append([" x ".join(map(str, tiles.shape)), *figures])
    return markdown_table(["latents", "estimated GB", "measured GB", "ratio"], rows)


def describe(request: ResolvedRequest) -> str:
    """Description of the video, its dtype and its tiling."""
    return (
        f"{request.num_frames} frames of {request.height} x {request.width} in float16, in tiles "
        f"of {request.decode_tile_size}, {request.decode_tile_stride} apart"
    )


def main() -> None:
    """Parse the command line and run the benchmark."""
    parser = benchmark_parser(__doc__, rounds=3)
    parser.add_argument("--size", type=parse_size, default=(33, 720, 1280))
    parser.add_argument("--profile", type=Path, help="written by longtake bench --calibrate")
    args = parser.parse_args()
    plans = [plan_input(args.size, hardware) for hardware in read_profiles(args.profile)]
    report = Report("Decoding on one GPU", "a real decode", "cuda", args.results)
    report.add(f"{describe(plans[0].request)}; medians of {args.rounds} rounds, interleaved.")
    with torch.no_grad():
        vae = autoencoder(torch.device("cuda", 0))
        decoder = HunyuanVideoDecoder(vae, plans[0].request)
        latents = plans[0].grid.noise(seed=1).to(vae.device)
        report.add(table(contestants(vae, decoder, latents), args.rounds))
        report.add("One call of the decoder:", memory(decoder, latents))
    for plan in plans:
        decode_s = predict(plan, ParallelDims()).stages["decode"]
        report.add(f"Predicted by {plan.hardware.description}: {decode_s:.1f} s.")
    report.write()


if __name__ == "__main__":
    main()
