"""Default cases, refusals, differences between arrays, and the command's output."""

from __future__ import annotations

import itertools
import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from longtake.cli.commands.verify import _as_json, _lines, _requests
from longtake.configs.engine import EngineConfig
from longtake.engine.job import Job, JobRun
from longtake.engine.launch.in_process import InProcess
from longtake.engine.media.arrays import Array
from longtake.engine.media.sinks import NullSink
from longtake.engine.rank_report import RankReport
from longtake.engine.tools.differences import max_error, psnr_db, relative_error
from longtake.engine.tools.verify import (
    Case,
    Comparison,
    Divergence,
    Verification,
    cases_of,
    layouts_of,
    uneven_size,
)
from longtake.engine.worker import Worker
from longtake.errors import KernelError, LayoutError, RequestError
from longtake.parallel import ParallelDims
from longtake.pipelines import registry
from longtake.pipelines.loading.checkpoint import Checkpoint
from longtake.pipelines.models.hunyuan_video.options import TextToVideoOptions
from longtake.pipelines.runtime.trace_points import TracePoint, TraceRequest
from longtake.pipelines.spec import ModelSpec
from tests.rendering import ALONE, request
from tests.tiny import num_text_tokens

PLAIN = request()
GUIDED = request(true_cfg_scale=3.0, negative_prompt="red")
TWO = ParallelDims(ulysses_degree=2)


@pytest.fixture(scope="module")
def spec(model: str) -> ModelSpec:
    return registry.inspect(Checkpoint.open(model))


def names(layouts: list[ParallelDims]) -> list[str]:
    return [dims.name for dims in layouts]


def test_layouts_are_all_factorizations_of_the_devices() -> None:
    assert names(layouts_of(1, num_passes=2)) == ["1x1x1"]
    assert names(layouts_of(2, num_passes=2)) == ["1x1x2", "1x2x1", "2x1x1"]
    assert names(layouts_of(3, num_passes=2)) == ["1x1x3", "1x3x1"]
    assert names(layouts_of(4, num_passes=2)) == ["1x1x4", "1x2x2", "1x4x1", "2x1x2", "2x2x1"]
    assert names(layouts_of(4, num_passes=1)) == ["1x1x4", "1x2x2", "1x4x1"]
    assert len(layouts_of(12, num_passes=2)) == 6 + 4


def test_each_layout_has_a_request_that_it_can_render() -> None:
    cases = cases_of([], 4, PLAIN, GUIDED)
    assert {case.dims.cfg_degree: case.request for case in cases} == {1: PLAIN, 2: GUIDED}
    assert len(cases) == 5
    asked = [ParallelDims(ring_degree=2), ParallelDims(ring_degree=2)]
    assert cases_of(asked, 2, GUIDED, None) == [Case(asked[0], GUIDED)]


@pytest.mark.parametrize(
    ("layout", "text"),
    [
        ("2x2", "layout=1x2x2 needs 4 ranks, got devices=6: try devices=4, or layout=1x1x6"),
        ("3x1x2", "layout=3x1x2 has cfg_degree=3, and classifier-free guidance has two passes"),
        ("2x1x3", "layout=2x1x3: without classifier-free guidance there is no second pass"),
    ],
)
def test_invalid_layouts_are_refused(layout: str, text: str) -> None:
    with pytest.raises(LayoutError, match=text):
        cases_of([ParallelDims.parse(layout)], 6, PLAIN, None)


@pytest.mark.parametrize("devices", [1, 2, 3, 4, 5, 6, 7, 8, 12, 15, 16, 30, 64, 210, 1024])
def test_the_default_size_divides_evenly_over_no_layout(spec: ModelSpec, devices: int) -> None:
    size = uneven_size(spec, devices)
    cells = [
        (size["num_frames"] - 1) // spec.frames_multiple + 1,
        size["height"] // spec.size_multiple,
        size["width"] // spec.size_multiple,
    ]
    assert size["height"] % spec.size_multiple == size["width"] % spec.size_multiple == 0
    assert (size["num_frames"] - 1) % spec.frames_multiple == 0
    assert min(cells) >= 3
    tokens = math.prod(cells)
    assert math.gcd(tokens, devices) == 1
    assert 2 * devices <= tokens < 64 * devices + 64


def test_default_requests_and_overrides(spec: ModelSpec) -> None:
    plain, guided = _requests({}, spec, 2)
    assert guided is not None
    assert (plain.num_frames, plain.height, plain.width) == (9, 48, 80)
    assert (plain.seed, plain.output_type, spec.num_passes(plain)) == (0, "latents", 1)
    assert (guided.seed, spec.num_passes(guided)) == (0, 2)
    assert guided.negative_prompt

    asked = {"prompt": "cat", "height": "32", "seed": "5", "sigmas": ("1", "0.5")}
    for each in _requests(asked, spec, 2):
        assert each is not None
        assert (each.prompt, each.height, each.width, each.seed) == ("cat", 32, 80, 5)
        assert each.num_inference_steps == 2

    assert _requests({"true_cfg_scale": "1"}, spec, 2)[1] is None
    plain, guided = _requests({"true_cfg_scale": "2"}, spec, 2)
    assert plain == guided and TextToVideoOptions.of(plain).true_cfg_scale == 2
    plain, guided = _requests({"negative_prompt": "dog"}, spec, 2)
    assert plain == guided and spec.num_passes(plain) == 2 and plain.negative_prompt == "dog"
    with pytest.raises(RequestError, match="height=33 must be a multiple of 16"):
        _requests({"height": "33"}, spec, 2)


def arrays(size: int, changes: dict[int, float]) -> tuple[Array, Array]:
    """Random values, and a copy with a few changes."""
    expected = np.random.default_rng(0).standard_normal(size).astype(np.float32)
    values = expected.copy()
    for at, value in changes.items():
        values[at] = value
    return values, expected


def test_differences_of_more_than_one_piece() -> None:
    values, expected = arrays(3 * 2**20 + 5, {2**21 + 3: 9.0, -1: -30.0})
    assert max_error(values, expected) == pytest.approx(30 + float(expected[-1]), rel=1e-6)
    squares = (9.0 - float(expected[2**21 + 3])) ** 2 + (30 + float(expected[-1])) ** 2
    peak = float(expected.max()) - float(expected.min())
    wanted = 10 * math.log10(peak**2 / (squares / expected.size))
    assert psnr_db(values, expected) == pytest.approx(wanted)
    rms = math.sqrt(float(np.mean(expected.astype(np.float64) ** 2)))
    wanted = (30 + float(expected[-1])) / (rms + abs(float(expected[-1])))
    assert relative_error(values, expected) == pytest.approx(wanted)


def test_equal_arrays() -> None:
    values, expected = arrays(10, {})
    assert (max_error(values, expected), relative_error(values, expected)) == (0, 0)
    assert psnr_db(values, expected) == math.inf
    zeros = np.zeros((2, 3), np.float32)
    assert (max_error(zeros, zeros), relative_error(zeros, zeros)) == (0, 0)
    assert relative_error(zeros + 1, zeros) == math.inf


def test_a_large_value_may_differ_by_more() -> None:
    expected = np.ones(10_000, np.float32)
    expected[0] = 1000.0  # rms: 10
    for at in (0, 1):
        values = expected.copy()
        values[at] += 1.0
        assert relative_error(values, expected) == pytest.approx((1 / 1010, 1 / 11)[at], rel=0.02)


@pytest.mark.parametrize(
    ("value", "other"), [(math.nan, 1.0), (1.0, math.nan), (math.nan, math.nan)]
)
def test_nan_is_never_within_the_tolerance(value: float, other: float) -> None:
    values, expected = arrays(2**20 + 9, {3: value})
    expected[3] = other
    for measure in (max_error, relative_error, psnr_db):
        assert math.isnan(measure(values, expected))


def test_infinity_is_never_within_the_tolerance() -> None:
    values, expected = arrays(9, {3: math.inf})
    assert max_error(values, expected) == relative_error(values, expected) == math.inf
    expected[3] = math.inf
    assert math.isnan(max_error(values, expected))
    assert not relative_error(values, expected) <= 1e9


def test_a_refusal_names_its_layout() -> None:
    class Refusing(InProcess):
        closed = 0

        def start(self, *args: Any) -> None:
            pass

        def render(self, *args: Any, **more: Any) -> list[RankReport]:
            raise KernelError("kernel='magic' cannot run")

        def close(self) -> None:
            Refusing.closed += 1

    launcher = Refusing(EngineConfig(), "cpu")
    verification = Verification(lambda: launcher, lambda: launcher, 0.0, lambda progress: None)
    with pytest.raises(KernelError, match="one rank: kernel='magic' cannot run"):
        verification.run([CASE])
    assert Refusing.closed == 1


CASE = Case(TWO, PLAIN)
FOUND = [
    Comparison(CASE, [0.0, 0.0], math.inf, "sdpa"),
    Comparison(
        CASE, [1e-6, 2.5e-3], 60.04, "sdpa", Divergence(2, 3, 6, "blocks.2", "negative", 0.25)
    ),
    Comparison(CASE, [math.nan, 1.0], math.nan, "sdpa", Divergence(1, 0, 6, error=math.nan)),
    Comparison(
        Case(ParallelDims(cfg_degree=2), GUIDED), [1.0], 1.0, "sdpa", Divergence(1, None, 6)
    ),
]


def test_table_of_the_command(spec: ModelSpec) -> None:
    config = EngineConfig(devices=2, device="cpu", dtype="float32")
    diverged = "3 of 4 differ by more than 0.0001: 1x1x2 1x1x2 2x1x1"
    assert _lines(FOUND, config, spec, 1e-4) == [
        "demo on one rank and on 2 cpu ranks, float32: 9 frames of 48x32 in 3 steps, seed 3",
        "layout  CFG           max error  PSNR     diverges at",
        "1x1x2   no            0.0e+00    exact    -",
        "1x1x2   no            2.5e-03    60.0 dB  "
        "step 2, block 3 of 6 (blocks.2), negative branch",
        "1x1x2   no            nan        nan dB   step 1, before the first block",
        "2x1x1   side by side  1.0e+00    1.0 dB   step 1, in no single block",
        diverged,
    ]
    config = EngineConfig(dtype="float16")
    assert _lines(FOUND, config, spec, 1e-4)[-1].startswith(
        f"{diverged}; float16 may do so by rounding"
    )
    assert _lines(FOUND[:1], config, spec, 1e-4)[-1].startswith(
        "all within 0.0001 after every step ("
    )


def test_json_has_no_nan_or_infinity() -> None:
    described = _as_json(FOUND, EngineConfig(), 1e-4)
    described = json.loads(json.dumps(described, allow_nan=False))
    assert (described["within"], described["tolerance"]) == (False, 1e-4)
    exact, parted, broken, _ = described["layouts"]
    assert (exact["within"], exact["exact"], exact["psnr_db"]) == (True, True, None)
    assert exact["parting"] is None
    assert parted["steps"] == [
        {"step": 1, "max_error": 1e-6, "within": True},
        {"step": 2, "max_error": 2.5e-3, "within": False},
    ]
    assert parted["parting"] == {
        "step": 2,
        "block": 3,
        "num_blocks": 6,
        "name": "blocks.2",
        "branch": "negative",
        "relative_error": 0.25,
    }
    assert (broken["within"], broken["exact"], broken["max_error"]) == (False, False, None)
    assert broken["steps"][0] == {"step": 1, "max_error": None, "within": False}


class Points(NullSink):
    """A sink that keeps the recorded values."""

    def __init__(self) -> None:
        self.recorded: dict[TracePoint, Array] = {}
        self.finished: Any = None

    def traced(self, point: TracePoint, values: Array) -> None:
        self.recorded[point] = values.copy()

    def latents(self, latents: Array) -> None:
        self.finished = latents


def render(worker: Worker, job: Job, sink: Points) -> None:
    worker.render(JobRun(job, sink))


def test_a_traced_rendering_records_values_and_leaves_no_hooks(model: str) -> None:
    worker = Worker(
        EngineConfig(model=model, weights="resident", text_weights="resident"),
        ALONE,
        lambda progress: None,
    )
    denoiser = worker.pipeline.denoiser
    asked = request(output_type="latents", true_cfg_scale=2.0, negative_prompt="red")
    plain, traced = Points(), Points()
    for sink, trace in ((plain, None), (traced, TraceRequest(blocks_of_step=2))):
        job = Job.of(asked, ParallelDims(), trace=trace)
        render(worker, Job.model_validate_json(job.model_dump_json()), sink)
    np.testing.assert_array_equal(traced.finished, plain.finished)
    assert plain.recorded == {}
    latents = [point for point in traced.recorded if point.block is None]
    assert latents == [TracePoint(step) for step in (1, 2, 3)]
    np.testing.assert_array_equal(traced.recorded[latents[-1]], traced.finished)
    blocks = [point for point in traced.recorded if point.block is not None]
    assert {point.step for point in blocks} == {2}
    assert [(point.branch, point.block) for point in blocks] == [
        *itertools.product(("positive", "negative"), range(5))
    ]
    assert [point.name for point in blocks[:5]] == [
        "",
        "transformer.transformer_blocks.0",
        "transformer.transformer_blocks.1",
        "transformer.single_transformer_blocks.0",
        "transformer.single_transformer_blocks.1",
    ]
    num_tokens = 3 * 2 * 3 + num_text_tokens(asked.prompt)
    assert {traced.recorded[point].shape for point in blocks[:5]} == {(1, num_tokens, 96)}
    assert not hooks(denoiser)


def hooks(module: nn.Module) -> list[Any]:
    """All hooks on a module and its submodules."""
    return [
        hook
        for each in module.modules()
        for hook in (*each._forward_hooks.values(), *each._forward_pre_hooks.values())
    ]


def test_hooks_are_removed_when_a_rendering_is_stopped(model: str) -> None:
    worker = Worker(
        EngineConfig(model=model, weights="resident", text_weights="resident"),
        ALONE,
        lambda progress: None,
    )

    class Enough(Exception):
        pass

    class Stopping(Points):
        def traced(self, point: TracePoint, values: Array) -> None:
            if point.block == 2:
                assert hooks(worker.pipeline.denoiser)
                raise Enough

    job = Job.of(request(output_type="latents"), ParallelDims(), trace=TraceRequest(1))
    with pytest.raises(Enough):
        render(worker, job, Stopping())
    assert not hooks(worker.pipeline.denoiser)


def test_traced_latents_need_not_be_finite(model: str) -> None:
    worker = Worker(
        EngineConfig(model=model, weights="resident", text_weights="resident"),
        ALONE,
        lambda progress: None,
    )
    with torch.no_grad():
        next(iter(worker.pipeline.denoiser.chains[0][1].parameters())).fill_(math.nan)
    sink = Points()
    job = Job.of(request(output_type="latents"), ParallelDims(), trace=TraceRequest())
    render(worker, job, sink)
    assert len(sink.recorded) == 3
    assert all(np.isnan(values).all() for values in sink.recorded.values())
