"""Conversion between the page's form and requests."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from longtake.configs.engine import EngineConfig
from longtake.configs.fields.few_step import FewStep
from longtake.configs.fields.lora import parse_lora
from longtake.engine.engine import VideoEngine
from longtake.pipelines.models.hunyuan_video.defaults import HunyuanVideoDefaults
from longtake.serve.http.request.openai_request import parse_submission
from longtake.serve.page.form import AS_THE_PICTURE, Form


@pytest.fixture(params=["demo", "demo-i2v", "HunyuanVideo's presets"])
def engine(request: pytest.FixtureRequest) -> VideoEngine:
    if request.param in ("demo", "demo-i2v"):
        return VideoEngine(EngineConfig(model=request.param), isolated=True)
    engine = VideoEngine(EngineConfig(model="demo"), isolated=True)
    defaults = HunyuanVideoDefaults(flow_shift=7.0)
    engine.spec = replace(engine.spec, defaults=defaults, size_multiple=16)
    return engine


def test_every_preset_is_a_valid_request(engine: VideoEngine) -> None:
    form = Form(engine.spec)
    untouched = dict.fromkeys(form.fields, "")
    sizes, lengths = form.sizes(), form.lengths()
    assert form.default_length in [frames for _, frames in lengths]
    for _, size in sizes:
        for _, frames in lengths:
            values = {**untouched, "prompt": "a", "size": size, "length": frames}
            fields = form.request([values[name] for name in form.fields])
            request = parse_submission(fields, {}, "demo", engine.spec).request
            assert (request.num_frames or 0) % engine.spec.frames_multiple == 1
            if size != AS_THE_PICTURE:
                assert f"{request.width}x{request.height}" == size
                assert (request.width or 0) % engine.spec.size_multiple == 0


def test_a_request_survives_the_round_trip_through_the_form(engine: VideoEngine) -> None:
    if engine.spec.pictures:
        pytest.skip("wants a picture")
    form = Form(engine.spec)
    settings = ["5", 2.0, "4", "1.5", "12.5", "2", "blurred"]
    values: list[Any] = ["a", "64 × 96", "3.1s", " 7 ", *settings]
    fields = form.request(values)
    resolved = engine.resolve(parse_submission(fields, {}, "demo", engine.spec).request)
    frames = resolved.num_frames
    again = form.request(form.values(resolved))
    same = engine.resolve(parse_submission(again, {}, "demo", engine.spec).request)
    assert same == resolved
    assert (resolved.seed, resolved.width, resolved.height, resolved.flow_shift) == (7, 64, 96, 4)
    assert abs(frames / resolved.fps - 3.1) <= 2 / resolved.fps
    found = [getattr(resolved, name) for name in form.settings]
    assert found == [5, 2.0, 4.0, 1.5, 12.5, 2, "blurred"]


def test_loras_survive_the_round_trip_through_the_form() -> None:
    engine = VideoEngine(EngineConfig(model="demo"), isolated=True)
    form = Form(engine.spec, takes_loras=True)
    chosen = {"lora-1": "a b.safetensors", "lora-1-scale": "0.5", "lora-3": "c.safetensors@one"}
    values = {**dict.fromkeys(form.fields, ""), "prompt": "a", **chosen}
    fields = form.request([values[name] for name in form.fields])
    assert fields == {"prompt": "a", "lora": ["a b.safetensors:0.5", "c.safetensors@one"]}
    resolved = engine.resolve(parse_submission({"prompt": "a"}, {}, "demo", engine.spec).request)
    for count in range(6):
        loras = tuple(f"{n}.safetensors:{n / 8}@transformer" for n in range(count))
        again = form.request(form.values(resolved.model_copy(update={"lora": loras or None})))
        assert tuple(map(parse_lora, again.get("lora", ()))) == tuple(map(parse_lora, loras))
    for name in ("a, b.safetensors", "a:b.safetensors:1", "a@b.safetensors"):
        values = {**dict.fromkeys(form.fields, ""), "lora-1": name, "lora-1-scale": "0.5"}
        (lora,) = form.request([values[each] for each in form.fields])["lora"]
        use = parse_lora(lora)
        assert (use.file, use.scale) == (name.removesuffix(":1"), 0.5)
        shown = form.values(resolved.model_copy(update={"lora": (lora,)}))
        assert shown[form.fields.index("lora-1")] == name
    assert Form(engine.spec).fields == tuple(each for each in form.fields if "lora" not in each)
    assert form.field_of("lora") == "lora-1"


def test_placeholders_show_the_defaults(engine: VideoEngine) -> None:
    form, spec = Form(engine.spec), engine.spec
    shown = [form.default(name) for name in form.settings]
    defaults = spec.defaults
    numbers = [defaults.num_inference_steps, defaults.guidance_scale, spec.flow_shift, 1]
    mode = ["stable"] if spec.pictures else []
    rest = [f"{each:g}" for each in (defaults.fps, 1)]
    assert shown == [*(f"{each:g}" for each in numbers), *mode, *rest, "what not to show"]
    assert [form.choices(name) for name in ("fps", "resize_mode")] == [
        (),
        ("crop", "pad", "stretch"),
    ]


def test_few_step_presets_are_choices_of_a_model_that_has_some(engine: VideoEngine) -> None:
    assert "few_step" not in Form(engine.spec).settings
    presets = {"swift-2step": FewStep(num_inference_steps=2)}
    form = Form(replace(engine.spec, few_step_presets=presets))
    assert form.choices("few_step") == ("swift-2step", "file", "none")
    assert form.request(["a", "", "", "", "swift-2step"])["few_step"] == "swift-2step"


def test_options_map_to_fields(engine: VideoEngine) -> None:
    form = Form(engine.spec)
    shown = {"width": "size", "num_frames": "length", "input_reference": "picture", "fps": "fps"}
    for option, field in shown.items():
        assert form.field_of(option) == field
    assert form.field_of("sigmas") == form.field_of(None) == ""


def test_odd_values_do_not_raise_in_the_form() -> None:
    engine = VideoEngine(EngineConfig(model="demo"), isolated=True)
    values: list[Any] = [{}, [], 5, "x", None]
    for odd in values:
        form = Form(engine.spec)
        form.request([odd] * len(form.fields))
