"""From what was asked for to a request with nothing left out."""

from __future__ import annotations

import logging
import math
import secrets
from typing import Any

from longtake.configs.request import ResolvedRequest, VideoRequest
from longtake.errors import RequestError
from longtake.pipelines.base import ModelSpec

__all__ = ["ResolvedRequest", "VideoRequest", "resolve"]

logger = logging.getLogger(__name__)


def resolve(request: VideoRequest, spec: ModelSpec) -> ResolvedRequest:
    """Fill in the model's defaults and a seed, and check the request against the model.

    A missing seed is drawn here, once for all ranks.

    Raises:
        RequestError: a size, a number of frames or the noise levels that the model cannot have.
    """
    defaults = spec.defaults
    steps = request.num_inference_steps
    if request.sigmas is not None:
        steps = len(request.sigmas) if steps is None else steps
        if steps != len(request.sigmas):
            raise RequestError(
                f"num_inference_steps={steps} with {len(request.sigmas)} sigmas: there must be one "
                "sigma a step; leave num_inference_steps out"
            )
    shift = request.flow_shift or defaults.flow_shift or spec.flow_shift
    filled: dict[str, Any] = {
        "height": request.height or defaults.height,
        "width": request.width or defaults.width,
        "num_frames": request.num_frames or defaults.num_frames,
        "num_inference_steps": steps or defaults.num_inference_steps,
        "guidance_scale": _given(request.guidance_scale, defaults.guidance_scale),
        "flow_shift": shift,
        "fps": request.fps or defaults.fps,
        "seed": secrets.randbits(32) if request.seed is None else request.seed,
        "vae_tiling": _given(request.vae_tiling, defaults.vae_tiling),
        "prompt_template": request.prompt_template or defaults.prompt_template,
        "max_sequence_length": request.max_sequence_length or defaults.max_sequence_length,
    }
    if request.uses_true_cfg and request.negative_prompt is None:
        filled["negative_prompt"] = ""
    if request.negative_prompt and not request.uses_true_cfg:
        logger.warning(
            "negative_prompt has no effect with true_cfg_scale=%g: try 6",
            request.true_cfg_scale,
        )
    resolved = ResolvedRequest(**{**request.model_dump(), **filled})
    for name in ("height", "width"):
        _check_multiple(name, getattr(resolved, name), spec.size_multiple, 0)
    _check_multiple("num_frames", resolved.num_frames, spec.frames_multiple, 1)
    return resolved


def _given(value: float | bool | None, default: float | bool) -> float | bool:
    return default if value is None else value


def _check_multiple(name: str, value: int, multiple: int, rest: int) -> None:
    """Refuse a value that is not ``rest`` more than a multiple."""
    if (value - rest) % multiple == 0:
        return
    below = math.floor((value - rest) / multiple) * multiple + rest
    nearest = [str(near) for near in (below, below + multiple) if near > 0]
    more = f"{rest} more than " if rest else ""
    raise RequestError(
        f"{name}={value} must be {more}a multiple of {multiple}: try {' or '.join(nearest)}"
    )
