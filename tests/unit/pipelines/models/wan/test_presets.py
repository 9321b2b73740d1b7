"""Presets of the released Wan models: their figures, and plans from configuration files alone."""

from __future__ import annotations

from typing import Any

import pytest

from longtake.configs.engine import EngineConfig
from longtake.configs.hardware import load_hardware
from longtake.configs.models import presets
from longtake.configs.parallel import ParallelConfig
from longtake.configs.request import VideoRequest
from longtake.engine.planning.layout_chooser import LayoutChooser
from longtake.engine.planning.plan_input import PlanInput
from longtake.engine.planning.planner import Plan, make_plan
from longtake.engine.planning.weights.places import Places
from longtake.engine.resolve.request import resolve
from longtake.pipelines import registry
from longtake.pipelines.loading.checkpoint import Checkpoint
from longtake.pipelines.models.wan.spec import WanSpec

TOKENS_480P, TOKENS_720P, TOKENS_5B = 21 * 30 * 52, 21 * 45 * 80, 31 * 22 * 40

RELEASED: dict[str, tuple[int, int, int, float, float, int]] = {
    # tokens, steps, frame rate, guidance scale, shift, parameters of all transformers in millions
    "wan2.1-t2v-1.3b": (TOKENS_480P, 50, 16, 6.0, 8.0, 1419),
    "wan2.1-t2v-14b": (TOKENS_720P, 50, 16, 5.0, 5.0, 14288),
    "wan2.1-i2v-14b-480p": (TOKENS_480P, 40, 16, 5.0, 3.0, 16395),
    "wan2.1-i2v-14b-720p": (TOKENS_720P, 40, 16, 5.0, 5.0, 16395),
    "wan2.1-flf2v-14b-720p": (TOKENS_720P, 50, 16, 5.0, 16.0, 16396),
    "wan2.2-t2v-a14b": (TOKENS_720P, 40, 16, 4.0, 12.0, 28577),
    "wan2.2-i2v-a14b": (TOKENS_720P, 40, 16, 3.5, 5.0, 28578),
    "wan2.2-ti2v-5b": (TOKENS_5B, 50, 24, 5.0, 5.0, 5000),
}
TAKEN = {
    "wan2.1-i2v-14b-480p": {"image": "required"},
    "wan2.1-i2v-14b-720p": {"image": "required"},
    "wan2.1-flf2v-14b-720p": {"image": "required", "last_image": "required"},
    "wan2.2-i2v-a14b": {"image": "required", "last_image": "optional"},
    "wan2.2-ti2v-5b": {"image": "optional"},
}


ANY_PLACE = Places()


def spec_of(name: str) -> WanSpec:
    spec = registry.inspect(Checkpoint.open(name, configs_only=True), weights=False)
    assert isinstance(spec, WanSpec)
    return spec


def plan_input(name: str, gpu: str, **fields: Any) -> PlanInput:
    spec = spec_of(name)
    request = resolve(VideoRequest(prompt="a cat", seed=0, **fields), spec)
    return PlanInput.for_engine(EngineConfig(model=name), spec, load_hardware(gpu), request)


def plan(name: str, gpu: str, devices: int, places: Places = ANY_PLACE) -> Plan:
    return make_plan(plan_input(name, gpu), ParallelConfig(), devices, places)


def test_all_have_presets() -> None:
    assert {name for name in presets() if name.startswith("wan")} == set(RELEASED)


@pytest.mark.parametrize("name", RELEASED)
def test_figures(name: str) -> None:
    tokens, steps, fps, scale, shift, millions = RELEASED[name]
    spec = spec_of(name)
    request = resolve(VideoRequest(prompt="a cat", seed=0), spec)
    assert spec.grid(request).num_tokens == tokens
    assert (request.num_inference_steps, request.fps) == (steps, fps)
    assert (request.guidance_scale, request.flow_shift) == (scale, shift)
    assert round(spec.costs.transformer_parameters / 1e6) == millions
    assert round(spec.costs.other_parameters["text_encoders"] / 1e9, 1) == (
        6.3 if spec.has_image_keys else 5.7
    )
    assert dict(spec.pictures) == TAKEN.get(name, {})
    assert (spec.boundary is not None) == ("a14b" in name)
    assert spec.defaults.vae_dtype == "float32"


@pytest.mark.parametrize("name", RELEASED)
def test_pictures_find_a_size(name: str) -> None:
    """The listed sizes have at most the pixels of the released code's areas."""
    spec = spec_of(name)
    for resolution, sizes in spec.defaults.sizes.items():
        areas = {height * width for height, width in sizes}
        assert max(areas) - min(areas) < 0.06 * max(areas), resolution
        assert all((width, height) in sizes for height, width in sizes)
    assert bool(spec.defaults.sizes) == bool(spec.pictures)


@pytest.mark.parametrize("devices", [1, 5, 8, 16])
@pytest.mark.parametrize("name", RELEASED)
def test_a_plan_needs_no_weights(name: str, devices: int) -> None:
    best = plan(name, "h200", devices).best
    assert best.dims.world_size == devices
    assert best.stages["denoise"] > best.stages["text"] > 0


def test_a_picture_of_the_5b_is_planned() -> None:
    """It gives the tokens of its frame a timestep of their own, so every token a modulation."""
    config, spec = EngineConfig(model="wan2.2-ti2v-5b", device="cpu"), spec_of("wan2.2-ti2v-5b")
    chooser = LayoutChooser(config, spec, "cpu")
    text, picture = (
        chooser.predicted(resolve(VideoRequest(prompt="a cat", seed=0, **given), spec))
        for given in ({}, {"image": "cat.png"})
    )
    assert picture.memory.activations > 1.5 * text.memory.activations
    assert picture.step.compute_s > text.step.compute_s
    assert picture.stages["text"] > text.stages["text"]


def test_both_passes_side_by_side() -> None:
    """A cfg axis of two halves what attention sends, and its sizes divide for any heads."""
    assert plan("wan2.1-t2v-1.3b", "h100", 8).best.dims.cfg_degree == 2


@pytest.mark.parametrize(("gpu", "weights"), [("a6000", "streamed"), ("h100", "resident")])
def test_experts_are_streamed_where_both_do_not_fit(gpu: str, weights: str) -> None:
    made = make_plan(plan_input("wan2.2-t2v-a14b", gpu, decode="tiled"), ParallelConfig(), 1)
    best, expert = made.best, 28.58e9
    assert best.placement.weights == weights
    held = best.memory.weights if weights == "resident" else best.memory.host.weights
    assert held == pytest.approx(2 * expert, rel=0.02)


def test_sharded_experts_take_no_swap_and_gather_one_at_a_time() -> None:
    shards = {name: plan(name, "h100", 8) for name in ("wan2.1-t2v-14b", "wan2.2-t2v-a14b")}
    one, two = (
        next(each for each in made.layouts if each.name == "1x1x8 +split")
        for made in shards.values()
    )
    assert two.step_bytes == one.step_bytes
    assert two.stages["denoise"] == pytest.approx(40 * two.step.seconds)
    assert two.memory.weights - one.memory.weights == pytest.approx(28.58e9 / 8, rel=0.01)
