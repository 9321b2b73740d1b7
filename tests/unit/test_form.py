"""The page's form, as a request and back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from longtake.configs.engine import EngineConfig
from longtake.configs.models import ModelDefaults
from longtake.engine.engine import VideoEngine
from longtake.serve.asked import asked_of
from longtake.serve.form import AS_THE_PICTURE, FIELDS, Form


@pytest.fixture(params=["demo", "demo-i2v", "HunyuanVideo's presets"])
def engine(request: pytest.FixtureRequest) -> VideoEngine:
    if request.param in ("demo", "demo-i2v"):
        return VideoEngine(EngineConfig(model=request.param), isolated=True)
    engine = VideoEngine(EngineConfig(model="demo"), isolated=True)
    defaults = ModelDefaults(flow_shift=7.0)
    engine.spec = replace(engine.spec, defaults=defaults, size_multiple=16)
    return engine


def test_every_preset_can_be_asked_for(engine: VideoEngine) -> None:
    form = Form(engine)
    untouched = dict.fromkeys(FIELDS, "")
    sizes, lengths = form.sizes(), form.lengths()
    assert form.default_length in [frames for _, frames in lengths]
    for _, size in sizes:
        for _, frames in lengths:
            values = {**untouched, "prompt": "a", "size": size, "length": frames}
            asked = form.request([values[name] for name in FIELDS])
            request = asked_of(asked, None, "demo", engine.spec).request
            assert (request.num_frames or 0) % engine.spec.frames_multiple == 1
            if size != AS_THE_PICTURE:
                assert f"{request.width}x{request.height}" == size
                assert (request.width or 0) % engine.spec.size_multiple == 0


def test_a_video_comes_back_as_it_was(engine: VideoEngine) -> None:
    if engine.spec.image is not None:
        pytest.skip("wants a picture")
    form = Form(engine)
    values: list[Any] = ["a", "64 × 96", "3.1s", " 7 ", 5, 2.0, "4"]
    asked = form.request(values)
    resolved = engine.resolve(asked_of(asked, None, "demo", engine.spec).request)
    frames = resolved.num_frames
    again = form.request(form.values(resolved))
    same = engine.resolve(asked_of(again, None, "demo", engine.spec).request)
    assert same == resolved
    assert (resolved.seed, resolved.width, resolved.height, resolved.flow_shift) == (7, 64, 96, 4)
    assert abs(frames / resolved.fps - 3.1) <= 2 / resolved.fps


def test_odd_values_are_left_to_be_refused_where_all_are() -> None:
    engine = VideoEngine(EngineConfig(model="demo"), isolated=True)
    values: list[Any] = [{}, [], 5, "x", None]
    for odd in values:
        Form(engine).request([odd] * len(FIELDS))
