"""Draws the predicted scaling of HunyuanVideo over 1 to 64 H100s: docs/scaling.png.

    make plots

720 x 1280, 129 and 1289 frames, 50 steps; text encoding, denoising and decoding; the fastest layout
for each number of GPUs. Two topologies: 8 GPUs per node with InfiniBand between nodes, and all GPUs
in one node. Hollow markers: no layout fits in memory, and the fastest one is shown.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib

from benchmarks.plan_input import hunyuan_video_input
from longtake.configs.hardware import Hardware, load_hardware
from longtake.configs.parallel import ParallelConfig
from longtake.configs.request import VideoRequest
from longtake.engine.planning.layouts import candidate_layouts
from longtake.engine.planning.memory import out_of_memory_reason
from longtake.engine.planning.plan_input import PlanInput
from longtake.engine.planning.prediction import Prediction, best_first, predict
from longtake.engine.planning.weights.places import Placement

matplotlib.use("agg")

COUNTS = (1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 24, 32, 48, 64)


@dataclass(frozen=True)
class Point:
    """The fastest layout for one number of GPUs."""

    count: int
    speedup: float
    layout: str
    fits: bool


def curve(num_frames: int, hardware: Hardware, counts: Sequence[int] = COUNTS) -> list[Point]:
    """Speedups over one GPU."""
    request = VideoRequest(prompt="any", num_frames=num_frames, seed=0)
    plan_input = hunyuan_video_input(hardware, request)
    points, alone_s = [], 0.0
    for count in counts:
        best, fits = _fastest(plan_input, count)
        alone_s = alone_s or best.rendering_s * count
        points.append(Point(count, alone_s / best.rendering_s, best.name, fits))
    return points


def _fastest(plan_input: PlanInput, count: int) -> tuple[Prediction, bool]:
    """The fastest layout that fits in memory, or the fastest of all if none fits."""
    layouts = candidate_layouts(
        ParallelConfig(), count, num_heads=plan_input.spec.num_heads, num_passes=1
    )
    predicted = [
        predict(plan_input, dims, placement)
        for dims in layouts
        for placement in (Placement(), Placement("split"))[:count]
    ]
    fitting = [
        each
        for each in predicted
        if out_of_memory_reason(plan_input, each.dims, each.placement) is None
    ]
    return best_first(fitting or predicted)[0], bool(fitting)


def draw(path: Path) -> None:
    """Plot the curves to a file and print them."""
    from matplotlib import pyplot

    h100 = load_hardware("h100")
    kinds = (
        (129, h100, "720p, 129 frames, nodes of 8", "tab:blue", "-"),
        (129, h100.with_node_of(64), "720p, 129 frames, one node", "tab:blue", ":"),
        (1289, h100, "720p, 1289 frames, nodes of 8", "tab:orange", "-"),
        (1289, h100.with_node_of(64), "720p, 1289 frames, one node", "tab:orange", ":"),
    )
    figure, (speed, share) = pyplot.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    speed.plot(COUNTS, COUNTS, color="0.8", linewidth=1, label="ideal")
    for num_frames, hardware, label, color, style in kinds:
        points = curve(num_frames, hardware)
        counts = [each.count for each in points]
        for axes, values in (
            (speed, [each.speedup for each in points]),
            (share, [100 * each.speedup / each.count for each in points]),
        ):
            axes.plot(counts, values, color=color, linestyle=style, label=label)
            for each, value in zip(points, values, strict=True):
                face = color if each.fits else "white"
                axes.plot(each.count, value, "o", color=color, markerfacecolor=face, markersize=4)
        print(label, *(f"{p.count}: {p.layout} {p.speedup:.1f}x" for p in points), sep="\n  ")
    for axes, title in ((speed, "speedup over one H100"), (share, "efficiency, %")):
        axes.set_xscale("log", base=2)
        axes.set_xticks([1, 2, 4, 8, 16, 32, 64], labels=["1", "2", "4", "8", "16", "32", "64"])
        axes.set_xlabel("H100s")
        axes.set_title(title)
        axes.grid(alpha=0.3)
    speed.set_yscale("log", base=2)
    speed.set_yticks([1, 2, 4, 8, 16, 32, 64], labels=["1", "2", "4", "8", "16", "32", "64"])
    share.set_ylim(80, 101)
    speed.legend()
    figure.suptitle("HunyuanVideo, 720 x 1280, 50 steps: predicted, end to end without loading")
    figure.savefig(path, dpi=110)


def main() -> None:
    """Parse the command line and draw the plot."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, default=Path("docs/scaling.png"))
    draw(parser.parse_args().output)


if __name__ == "__main__":
    main()
