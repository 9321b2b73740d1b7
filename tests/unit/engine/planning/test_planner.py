"""Layouts that a request can run in, their order, and the suggestion if none fits."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from longtake.configs.engine import EngineConfig
from longtake.configs.hardware import Figure, load_hardware
from longtake.configs.parallel import ParallelConfig
from longtake.configs.request import ResolvedRequest, VideoRequest
from longtake.engine.planning.layout_chooser import choose_layout
from longtake.engine.planning.layouts import MAX_RANKS, candidate_layouts, check_degrees
from longtake.engine.planning.plan_input import PlanInput
from longtake.engine.planning.planner import make_plan
from longtake.engine.planning.prediction import predict
from longtake.engine.planning.weights.places import Placement, Places
from longtake.engine.resolve.request import resolve
from longtake.errors import LayoutError, RequestError
from longtake.parallel import ParallelDims
from longtake.pipelines import registry
from longtake.pipelines.loading.checkpoint import Checkpoint
from longtake.pipelines.models.hunyuan_video.costs import HunyuanVideoCosts
from longtake.pipelines.models.hunyuan_video.spec import HunyuanVideoSpec
from longtake.pipelines.spec import ModelSpec

ANY = ParallelConfig()
RESIDENT = Places.only(Placement())


@cache
def spec_of(model: str) -> ModelSpec:
    return registry.inspect(Checkpoint.open(model, configs_only=True), weights=False)


def plan_input(
    gpu: str = "h100", *, model: str = "hunyuan-video", heads: int | None = None, **changes: Any
) -> PlanInput:
    """A request of the model's default size, with changes; with ``heads``, of a changed model."""
    spec = spec_of(model)
    if heads is not None:
        costs = spec.costs
        assert isinstance(costs, HunyuanVideoCosts)
        update = {"num_attention_heads": heads, "attention_head_dim": 3072 // heads}
        costs = replace(costs, transformer=costs.transformer.model_copy(update=update))
        spec = replace(spec, num_heads=heads, head_size=3072 // heads, costs=costs)
    request = resolve(VideoRequest(prompt="a cat", seed=0, **changes), spec)
    return PlanInput(
        spec=spec,
        hardware=load_hardware(gpu),
        request=request,
        dtype="bfloat16",
        vae_dtype="float16",
        text_tokens=256,
    )


def degrees(**requested: int) -> ParallelConfig:
    return ParallelConfig.model_validate(requested)


@pytest.mark.parametrize(
    ("devices", "changes", "chosen"),
    [
        (1, {}, "1x1x1"),
        (8, {}, "1x1x8"),
        (5, {}, "1x5x1"),  # 24 heads do not divide by 5, and a ring hides its traffic
        (7, {}, "1x7x1"),
        (16, {}, "1x2x8"),  # a ring between nodes, Ulysses within
        (32, {}, "1x4x8"),
        (4, dict(heads=3), "1x4x1"),
        (2, dict(true_cfg_scale=6.0), "2x1x1"),
        (8, dict(true_cfg_scale=6.0), "2x1x4"),
    ],
    ids=str,
)
def test_the_fastest_layout_is_chosen(devices: int, changes: dict[str, Any], chosen: str) -> None:
    dims, _, why = choose_layout(plan_input(**changes), ANY, devices)
    assert dims.name == chosen
    if devices > 1:
        assert why.startswith("the best of ") and "a step predicted" in why


@pytest.mark.parametrize(
    ("requested", "devices", "true_cfg", "found"),
    [
        (dict(ulysses_degree=2), 6, False, {"1x3x2"}),
        (dict(ring_degree=2), 6, False, {"1x2x3"}),
        (dict(ring_degree=2), 6, True, {"1x2x3"}),  # cfg 2 x ring 2 does not divide 6
        (dict(ring_degree=3), 6, True, {"1x3x2", "2x3x1"}),
        (dict(cfg_degree=1), 4, True, {"1x1x4", "1x2x2", "1x4x1"}),
        (dict(cfg_degree=2), 4, True, {"2x1x2", "2x2x1"}),
        (dict(cfg_degree=2, ring_degree=2, ulysses_degree=2), 8, True, {"2x2x2"}),
        (dict(ring_degree=2, ulysses_degree=2), 8, True, {"2x2x2"}),
    ],
)
def test_requested_degrees_are_kept(
    requested: dict[str, int], devices: int, true_cfg: bool, found: set[str]
) -> None:
    config = degrees(**requested)
    check_degrees(config, devices, num_heads=24)
    layouts = candidate_layouts(config, devices, num_heads=24, num_passes=2 if true_cfg else 1)
    assert {dims.name for dims in layouts} == found


@pytest.mark.parametrize(
    ("requested", "devices", "text"),
    [
        (
            dict(ulysses_degree=3, ring_degree=2),
            4,
            "ring_degree=2 x ulysses_degree=3 needs 6 ranks, got devices=4: try devices=6, or "
            "ring_degree=1 x ulysses_degree=4",
        ),
        (
            dict(ulysses_degree=3),
            4,
            "ulysses_degree=3 needs a multiple of 3 ranks, got devices=4: try devices=3, or "
            "ring_degree=1 x ulysses_degree=4",
        ),
        (
            dict(cfg_degree=2),
            3,
            "cfg_degree=2 needs a multiple of 2 ranks, got devices=3: try devices=2, or "
            "cfg_degree=1 x ring_degree=1 x ulysses_degree=3",
        ),
        (
            dict(ulysses_degree=8),
            2,
            "ulysses_degree=8 needs a multiple of 8 ranks, got devices=2: try devices=8, or "
            "ring_degree=1 x ulysses_degree=2",
        ),
    ],
)
def test_degrees_that_do_not_fit_are_refused(
    requested: dict[str, int], devices: int, text: str
) -> None:
    with pytest.raises(LayoutError) as caught:
        check_degrees(degrees(**requested), devices, num_heads=24)
    assert str(caught.value) == text


def test_passes_side_by_side_need_guidance() -> None:
    text = "cfg_degree=2: without classifier-free guidance there is no second pass"
    with pytest.raises(LayoutError, match=text):
        choose_layout(plan_input(), degrees(cfg_degree=2), 2)


def test_idle_ranks_log_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        choose_layout(plan_input(heads=6), degrees(ulysses_degree=8), 8)
    assert "2 ranks without a head idle during attention; raise ring_degree instead" in caplog.text


def test_choosing_a_layout_that_may_not_fit_logs_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        dims = choose_layout(plan_input("rtx4090"), ANY, 4).dims
    assert dims.world_size == 4
    assert "may run out of memory: needs 39.9 GiB a rank and there are 23.3" in caplog.text


def test_only_joint_tokens_are_split_beside_the_video() -> None:
    """The text of a model with cross attention alone stays whole on every rank."""

    class CrossAttention(HunyuanVideoSpec):
        def joint_tokens(self, request: ResolvedRequest) -> int:
            return 0

    joint = plan_input()
    spec = CrossAttention(**vars(joint.spec))
    apart = replace(joint, spec=spec)
    dims = ParallelDims(ulysses_degree=8)
    video = joint.grid.num_tokens
    assert sum(joint.shards(dims).counts) == video + joint.text_tokens
    assert sum(apart.shards(dims).counts) == video
    assert apart.text_tokens == joint.text_tokens
    fewer = replace(joint, text_tokens=joint.text_tokens - 100)
    assert sum(fewer.shards(dims).counts) == video + joint.text_tokens - 100


def test_a_plan_has_every_layout_once() -> None:
    plan = make_plan(plan_input(), ANY, 8)
    names = [each.name for each in plan.layouts]
    assert sorted(names) == sorted(
        f"1x{8 // u}x{u}{mark}"
        for u in (1, 2, 4, 8)
        for mark in ("", " +split", " +streamed", " +disk")
    )
    seconds = [each.rendering_s for each in plan.layouts]
    assert seconds[1:] == sorted(seconds[1:]) and seconds[0] < 1.005 * min(seconds)
    assert plan.best is plan.layouts[0]
    assert {each.name for each in plan.refused} == {"2x1x4", "2x2x2", "2x4x1"}
    assert all("no second pass" in each.reason for each in plan.refused)
    assert 0.9 < plan.efficiency(plan.best) <= 1.0


def test_stages_add_up() -> None:
    each = make_plan(plan_input(), ANY, 4).best
    assert set(each.stages) == {"load", "text", "denoise", "decode"}
    assert each.stages["denoise"] == pytest.approx(50 * each.step.seconds)
    assert each.end_to_end_s == pytest.approx(sum(each.stages.values()))
    assert len(each.step_bytes) == 4
    assert json.dumps(each.memory.as_json())


def test_all_ranks_decode_unless_fewer_are_requested() -> None:
    whole = plan_input()
    all_ranks = predict(whole, ParallelDims(ulysses_degree=8)).stages["decode"]
    one = predict(replace(whole, decode_ranks=1), ParallelDims(ulysses_degree=8)).stages["decode"]
    alone = predict(whole, ParallelDims()).stages["decode"]
    assert one == alone
    assert 6 < one / all_ranks <= 8


def test_larger_requests_take_longer() -> None:
    def step_s(**changes: Any) -> float:
        return predict(plan_input(**changes), ParallelDims(ulysses_degree=4)).step.seconds

    assert step_s(num_frames=65) < step_s() < step_s(num_frames=257)
    assert step_s(height=544, width=960) < step_s()
    assert step_s(true_cfg_scale=6.0) == pytest.approx(2 * step_s(), rel=0.01)
    assert step_s(num_videos=2) == pytest.approx(2 * step_s(), rel=0.05)


@pytest.mark.parametrize(
    ("gpu", "devices", "places", "changes", "way_out"),
    [
        ("rtx4090", 1, RESIDENT, {}, "try --weights streamed"),
        ("rtx4090", 8, RESIDENT, {}, "try --weights streamed"),
        ("h100", 8, Places(), dict(decode="whole"), "try --decode tiled"),
        ("h100", 8, Places(), dict(num_videos=1024), "try --num-videos 64"),
        ("h100", 1, Places(), dict(num_frames=16381), "try devices=16"),
    ],
)
def test_the_suggestion_fits(
    gpu: str, devices: int, places: Places, changes: dict[str, Any], way_out: str
) -> None:
    plan = make_plan(plan_input(gpu, **changes), ANY, devices, places)
    assert not plan.layouts
    with pytest.raises(RequestError) as caught:
        _ = plan.best
    text = str(caught.value)
    assert "GiB a rank and there are" in text and "too much" in text
    assert text.endswith(f"; {way_out}")

    flags = way_out.split()[1:]
    if flags[0].startswith("devices="):
        devices = int(flags.pop(0).removeprefix("devices="))
    if "--weights" in flags:
        places = Places.of(EngineConfig.model_validate({"weights": flags[-1]}), devices)
    if "--num-videos" in flags:
        changes = {**changes, "num_videos": int(flags[-1])}
    if "--decode" in flags:
        changes = {**changes, "decode": flags[-1]}
    assert make_plan(plan_input(gpu, **changes), ANY, devices, places).layouts


def test_a_smaller_size_is_suggested() -> None:
    """If no number of devices helps: one rank cannot hold the text encoders and a tile."""
    small = load_hardware("cpu").model_copy(
        update={"memory_bytes": Figure(value=16 * 2**30, source="of a test")}
    )
    long = replace(plan_input(num_frames=257), hardware=small)
    plan = make_plan(long, ANY, 1)
    with pytest.raises(RequestError, match=r"GiB a host and there are 16.0: .*; try --num-frames"):
        _ = plan.best


def test_ranks_of_a_host_share_its_memory() -> None:
    small = load_hardware("cpu").model_copy(
        update={"memory_bytes": Figure(value=2**33, source="of a test")}
    )
    demo = replace(plan_input("cpu", model="demo"), hardware=small, dtype="float32")
    assert make_plan(demo, ANY, 4).layouts
    with pytest.raises(RequestError, match=r"GiB a host and there are 8.0: .*; try devices=8"):
        _ = make_plan(demo, ANY, 64).best


def test_sharded_weights_take_less_memory_and_more_traffic() -> None:
    whole, split = (
        predict(plan_input(), ParallelDims(ulysses_degree=8), Placement(weights))
        for weights in ("resident", "split")
    )
    assert split.memory.weights < whole.memory.weights / 4
    assert sum(split.step_bytes) > sum(whole.step_bytes)
    assert split.step.seconds >= whole.step.seconds


def test_too_many_ranks_are_refused() -> None:
    with pytest.raises(LayoutError, match=f"devices={MAX_RANKS + 1}: plans are made for"):
        make_plan(plan_input(), ANY, MAX_RANKS + 1)


def test_a_dtype_without_a_rate_is_refused() -> None:
    rates = {"float32": Figure(value=1e12, source="of a test")}
    hardware = load_hardware("h100").model_copy(update={"flops_per_s": rates})
    with pytest.raises(RequestError, match="dtype=bfloat16: the profile of .* use float32"):
        replace(plan_input(), hardware=hardware)
