"""The released HunyuanVideo on this GPU, as the planner sees it."""

from __future__ import annotations

from pathlib import Path

from longtake.configs.hardware import Hardware, load_hardware
from longtake.configs.request import VideoRequest
from longtake.engine.planning.hardware import hardware_here
from longtake.engine.planning.plan_input import PlanInput
from longtake.engine.resolve.request import resolve
from longtake.pipelines import registry
from longtake.pipelines.loading.checkpoint import Checkpoint

MODEL = "hunyuan-video"
REAL_TEXT = 100
"""Number of text tokens that are not padding."""

Size = tuple[int, int, int]
"""Frames, height and width of a video."""


def plan_input(size: Size, hardware: Hardware) -> PlanInput:
    """Planner input for a video size."""
    spec = registry.inspect(Checkpoint.open(MODEL, configs_only=True), weights=False)
    frames, height, width = size
    request = VideoRequest(prompt="any", num_frames=frames, height=height, width=width, seed=0)
    return PlanInput(
        spec=spec,
        hardware=hardware,
        request=resolve(request, spec),
        dtype="bfloat16",
        vae_dtype="float16",
        text_tokens=REAL_TEXT,
    )


def read_profiles(path: Path | None) -> list[Hardware]:
    """The profile of this GPU and, if given, the measured one."""
    return [hardware_here(), *([load_hardware(str(path))] if path else [])]


def parse_size(text: str) -> Size:
    """Parse FRAMESxHEIGHTxWIDTH."""
    frames, height, width = map(int, text.split("x"))
    return frames, height, width
