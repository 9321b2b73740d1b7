"""Sizes of HunyuanVideo and profiles of this GPU, for the planner."""

from __future__ import annotations

from pathlib import Path

from benchmarks.plan_input import hunyuan_video_input
from longtake.configs.hardware import Hardware, load_hardware
from longtake.configs.request import VideoRequest
from longtake.engine.planning.hardware import hardware_here
from longtake.engine.planning.plan_input import PlanInput

REAL_TEXT = 100
"""Number of text tokens that are not padding."""

Size = tuple[int, int, int]
"""Frames, height and width of a video."""


def plan_input(size: Size, hardware: Hardware) -> PlanInput:
    """Planner input for a video size."""
    frames, height, width = size
    request = VideoRequest(prompt="any", num_frames=frames, height=height, width=width, seed=0)
    return hunyuan_video_input(hardware, request, text_tokens=REAL_TEXT)


def read_profiles(path: Path | None) -> list[Hardware]:
    """The profile of this GPU and, if given, the measured one."""
    return [hardware_here(), *([load_hardware(str(path))] if path else [])]


def parse_size(text: str) -> Size:
    """Parse FRAMESxHEIGHTxWIDTH."""
    frames, height, width = map(int, text.split("x"))
    return frames, height, width
