"""Plans with costs that are counted; imports no torch until something is counted."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

from longtake.configs.hardware import load_hardware
from longtake.configs.parallel import ParallelConfig
from longtake.configs.request import VideoRequest
from longtake.engine.planning.plan_input import PlanInput
from longtake.engine.planning.planner import Plan, make_plan
from longtake.engine.resolve.request import resolve
from longtake.pipelines import registry
from longtake.pipelines.costs import ModelCosts
from longtake.pipelines.counting.costs import CountedCosts
from longtake.pipelines.loading.checkpoint import Checkpoint
from longtake.pipelines.models.hunyuan_video.costs import HunyuanVideoCosts
from longtake.pipelines.spec import ModelSpec

TEXT_TOKENS = 256

ONE_CHUNK = 10**9
"""Tokens of a chunk that holds all: what is counted is then a polynomial in the tokens."""

SKELETON = "tests.unit.pipelines.counting.skeletons:hunyuan_video"


@cache
def spec_of(model: str) -> ModelSpec:
    """A model's specification, with the arithmetic of its family for a single chunk of tokens."""
    spec = registry.inspect(checkpoint_of(model), weights=False)
    assert isinstance(spec.costs, HunyuanVideoCosts)
    return replace(spec, costs=replace(spec.costs, tokens_per_chunk=ONE_CHUNK))


def checkpoint_of(model: str) -> Checkpoint:
    """A model's configuration files."""
    return Checkpoint.open(model, configs_only=True)


def counted(model: str) -> CountedCosts:
    """Costs that are counted anew, or read from the file of counts."""
    return CountedCosts(checkpoint_of(model), spec_of(model), SKELETON)


def plan_of(model: str, costs: ModelCosts, devices: int) -> Plan:
    """The plan of a video of the model's default size, on H100s."""
    spec = replace(spec_of(model), costs=costs)
    plan_input = PlanInput(
        spec=spec,
        hardware=load_hardware("h100"),
        request=resolve(VideoRequest(prompt="a cat", seed=0), spec),
        dtype="bfloat16",
        vae_dtype="float16",
        text_tokens=TEXT_TOKENS,
    )
    return make_plan(plan_input, ParallelConfig(), devices)
