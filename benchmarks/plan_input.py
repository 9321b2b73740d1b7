"""Released models, as the planner sees them."""

from __future__ import annotations

from longtake.configs.engine import EngineConfig
from longtake.configs.hardware import Hardware
from longtake.configs.request import VideoRequest
from longtake.engine.planning.plan_input import PlanInput
from longtake.engine.resolve.request import resolve
from longtake.pipelines import registry
from longtake.pipelines.loading.checkpoint import Checkpoint

MODEL = "hunyuan-video"


def hunyuan_video_input(
    hardware: Hardware,
    request: VideoRequest,
    *,
    text_tokens: int | None = None,
    decode_ranks: int | None = None,
) -> PlanInput:
    """Planner input of a request for HunyuanVideo; see :func:`preset_input`."""
    return preset_input(
        MODEL, hardware, request, text_tokens=text_tokens, decode_ranks=decode_ranks
    )


def preset_input(
    model: str,
    hardware: Hardware,
    request: VideoRequest,
    *,
    text_tokens: int | None = None,
    decode_ranks: int | None = None,
) -> PlanInput:
    """Planner input of a request, from a preset's configuration files alone.

    Args:
        model: Name of the preset.
        hardware: The hardware profile.
        request: The request.
        text_tokens: Tokens of the encoded prompt; the model's maximum if None.
        decode_ranks: Maximum number of ranks that decode; None for all.
    """
    spec = registry.inspect(Checkpoint.open(model, configs_only=True), weights=False)
    return PlanInput.for_engine(
        EngineConfig(model=model),
        spec,
        hardware,
        resolve(request, spec),
        text_tokens=text_tokens,
        decode_ranks=decode_ranks,
    )
