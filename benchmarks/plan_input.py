"""The released HunyuanVideo, as the planner sees it."""

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
    """Planner input of a request, from the model's configuration files alone.

    Args:
        hardware: The hardware profile.
        request: The request.
        text_tokens: Tokens of the encoded prompt; the model's maximum if None.
        decode_ranks: Maximum number of ranks that decode; None for all.
    """
    spec = registry.inspect(Checkpoint.open(MODEL, configs_only=True), weights=False)
    return PlanInput.for_engine(
        EngineConfig(model=MODEL),
        spec,
        hardware,
        resolve(request, spec),
        text_tokens=text_tokens,
        decode_ranks=decode_ranks,
    )
