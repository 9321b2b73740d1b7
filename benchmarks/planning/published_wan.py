"""The planner's predictions against published times of Wan.

    python -m benchmarks.planning.published_wan

Nothing is fitted to these runs. Other frameworks made them, with kernels of their own: a prediction
says what longtake would take. The profiles of H100 and H200 have the rate of cuDNN's attention. The
rate of FlashAttention-2 is that of HunyuanVideo's published run on one H100.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass

from benchmarks.plan_input import preset_input
from benchmarks.planning.published import FOLDER, as_published
from longtake.configs.hardware import Hardware, load_hardware
from longtake.configs.request import VideoRequest
from longtake.engine.planning.prediction import Prediction, layout_name, predict
from longtake.engine.planning.weights.places import Placement
from longtake.engine.tools.bench.markdown import markdown_table
from longtake.parallel import ParallelDims

EXACT = "bfloat16"
"""Kernels that compute attention in the dtype of the model."""


@dataclass(frozen=True)
class WanRun:
    """One published run.

    Attributes:
        model: Name of the preset.
        gpu: Name of the hardware profile.
        dims: The layout.
        placement: Where the weights lived.
        framework: What made the run.
        attention: Precision of the attention kernel.
        guided: Whether each step took two passes.
        size: Height and width.
        is_step: Whether the time is that of one step, rather than that of a video.
        seconds: Published time.
    """

    model: str
    gpu: str
    dims: ParallelDims
    placement: Placement
    framework: str
    attention: str
    guided: bool
    size: tuple[int, int]
    is_step: bool
    seconds: float

    @classmethod
    def of(cls, row: dict[str, str]) -> WanRun:
        """A row of the table."""
        dims = ParallelDims(
            cfg_degree=int(row["cfg_degree"]), ulysses_degree=int(row["ulysses_degree"])
        )
        return cls(
            row["model"],
            row["gpu"],
            dims,
            Placement("split" if row["shard_weights"] == "yes" else "resident"),
            row["framework"],
            row["attention"],
            row["passes"] == "2",
            (int(row["height"]), int(row["width"])),
            row["measure"] == "step",
            float(row["seconds"]),
        )

    def predicted_s(self, hardware: Hardware | None = None) -> float:
        """Predicted time of the same thing; that of a video is without loading."""
        prediction = self._prediction(hardware or load_hardware(self.gpu))
        return prediction.step.seconds if self.is_step else prediction.rendering_s

    def error(self, hardware: Hardware | None = None) -> float:
        """Relative error of the prediction."""
        return self.predicted_s(hardware) / self.seconds - 1

    @property
    def name(self) -> str:
        """What ran on which GPUs."""
        return f"{self.framework}-{self.dims.world_size}-{self.gpu}-{self.size[0]}p"

    def _prediction(self, hardware: Hardware) -> Prediction:
        height, width = self.size
        guidance = {} if self.guided else {"guidance_scale": 1.0}
        request = VideoRequest(
            prompt="a cat", num_inference_steps=40, seed=0, height=height, width=width, **guidance
        )
        plan_input = preset_input(self.model, hardware, request, decode_ranks=1)
        return predict(plan_input, self.dims, self.placement)


def with_flash_attention_2(gpu: str) -> Hardware | None:
    """The profile of a GPU with the rate of FlashAttention-2; None if its own is that already."""
    hardware, share = load_hardware(gpu), as_published("h100").attention_share
    if gpu not in ("h100", "h200"):
        return None
    return hardware.model_copy(update={"attention_share": share})


def wan_runs() -> list[WanRun]:
    """All published runs."""
    with (FOLDER / "wan_latency.csv").open() as file:
        rows = csv.DictReader(line for line in file if not line.startswith("#"))
        return [WanRun.of(row) for row in rows]


def wan_table() -> str:
    """Published and predicted times, in Markdown."""
    headings = ["run", "layout", "attention", "published s", "predicted s", "error"]
    headings += ["with FlashAttention-2"]
    rows = []
    for run in wan_runs():
        earlier = with_flash_attention_2(run.gpu) if run.attention == EXACT else None
        rows.append(
            [
                f"{run.model}, {run.framework}, {run.dims.world_size} {run.gpu}",
                layout_name(run.dims, run.placement),
                run.attention,
                f"{run.seconds:g}",
                f"{run.predicted_s():.3g}",
                f"{100 * run.error():+.0f} %",
                "" if earlier is None else f"{100 * run.error(earlier):+.0f} %",
            ]
        )
    return markdown_table(headings, rows)


if __name__ == "__main__":
    print(wan_table())
