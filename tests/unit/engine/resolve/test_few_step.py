"""Settings of few-step models: where they come from, and which of them holds."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from longtake.cli.main import main
from longtake.configs.engine import EngineConfig
from longtake.configs.fields.few_step import METADATA_KEY, FewStep, common_settings
from longtake.configs.models import bundled
from longtake.configs.request import ResolvedRequest, VideoRequest
from longtake.engine.media.identity import Identity
from longtake.engine.resolve.outline import EngineOutline
from longtake.engine.resolve.request import resolve
from longtake.errors import ModelError, RequestError, one_line
from longtake.pipelines import registry
from longtake.pipelines.loading.checkpoint import Checkpoint
from longtake.pipelines.models.wan.options import WanExpertsOptions
from longtake.pipelines.models.wan.samplers import new_stepper
from longtake.pipelines.models.wan.spec import WanSpec
from longtake.pipelines.spec import ModelSpec
from tests.simple_loras import save_lora

EXPERTS, HUNYUAN = "wan2.2-t2v-a14b", "hunyuan-video"
LORA = Path("lora.safetensors")
FOUR = FewStep(num_inference_steps=4, sigmas=(1.0, 0.75, 0.5, 0.25), flow_shift=5.0)


def spec_of(preset: str) -> ModelSpec:
    return registry.inspect(Checkpoint.open(preset, configs_only=True), weights=False)


def resolved(preset: str, file: FewStep | None = None, **fields: Any) -> ResolvedRequest:
    request = VideoRequest(prompt="a cat", seed=0, **fields)
    return resolve(request, spec_of(preset), few_step=file)


def test_presets_of_the_models() -> None:
    lightx2v, both = {"lightx2v-4step"}, {"lightx2v-4step", "accvideo-10step"}
    expected = {
        "demo": set(),
        "demo-i2v": set(),
        HUNYUAN: {"fasthunyuan-6step", "accvideo-5step"},
        "hunyuan-video-i2v": set(),
        "wan2.1-t2v-1.3b": set(),
        "wan2.1-t2v-14b": both,
        "wan2.1-i2v-14b-720p": lightx2v,
        EXPERTS: both - {"accvideo-10step"},
        "wan2.2-i2v-a14b": lightx2v,
        "wan2.2-ti2v-5b": set(),
    }
    assert {name: {*spec_of(name).few_step_presets} for name in expected} == expected


def test_lightx2v_is_four_levels_of_euler_without_guidance() -> None:
    """Timesteps 1000, 750, 500 and 250 of LightX2V's list, shifted; two for each expert."""
    request = resolved(EXPERTS, few_step="lightx2v-4step")
    spec = spec_of(EXPERTS)
    assert isinstance(spec, WanSpec) and spec.num_passes(request) == 1
    assert WanExpertsOptions.of(request).guidance_scale_2 == 1.0
    stepper = new_stepper(spec.scheduler, request, torch.device("cpu"))
    timesteps = stepper.timesteps.numpy()
    levels = np.array([1.0, 0.75, 0.5, 0.25])
    np.testing.assert_allclose(timesteps, 5000 * levels / (1 + 4 * levels), rtol=1e-6)
    assert [*(timesteps >= spec.boundary)] == [True, True, False, False]


def test_a_preset_of_hunyuan_video() -> None:
    request = resolved(HUNYUAN, few_step="fasthunyuan-6step")
    assert (request.num_inference_steps, request.flow_shift, request.guidance_scale) == (6, 17, 6)
    assert request.few_step == "fasthunyuan-6step"


def test_the_request_comes_first_then_the_preset_then_the_file() -> None:
    file = FewStep(num_inference_steps=3, flow_shift=2.0, guidance_scale=2.5)
    names = ("few_step", "num_inference_steps", "flow_shift", "guidance_scale")

    def found(**fields: Any) -> tuple[Any, ...]:
        request = resolved(HUNYUAN, file, **fields)
        return tuple(getattr(request, name) for name in names)

    assert found() == found(few_step="file") == ("file", 3, 2.0, 2.5)
    assert found(few_step="accvideo-5step") == ("accvideo-5step", 5, 7.0, 6.0)
    assert found(few_step="none", flow_shift=9) == ("none", 50, 9.0, 6.0)
    assert found(num_inference_steps=8, guidance_scale=1) == ("file", 8, 2.0, 1.0)


def test_noise_levels_are_those_of_the_number_of_steps() -> None:
    assert resolved(HUNYUAN, FOUR).sigmas == FOUR.sigmas
    eight = resolved(HUNYUAN, FOUR, num_inference_steps=8)
    assert (eight.num_inference_steps, eight.sigmas, eight.flow_shift) == (8, None, 5.0)
    two = resolved(HUNYUAN, FOUR, sigmas=(1.0, 0.5))
    assert (two.num_inference_steps, two.sigmas) == (2, (1.0, 0.5))


def test_a_record_is_resolved_as_it_was_without_its_preset() -> None:
    request = resolved(HUNYUAN, few_step="accvideo-5step")
    spec = replace(spec_of(HUNYUAN), few_step_presets={})
    assert resolve(request, spec) == request
    recorded = json.loads(request.model_dump_json())
    assert recorded["few_step"] == "accvideo-5step"
    assert ResolvedRequest(**recorded) == request


def test_the_name_of_settings_is_not_part_of_what_latents_depend_on() -> None:
    request = resolved(HUNYUAN, few_step="accvideo-5step")
    same = resolved(HUNYUAN, num_inference_steps=5, flow_shift=7.0, guidance_scale=6.0)
    identities = [
        Identity(request=each, model="m", dtype="float32", versions={}) for each in (request, same)
    ]
    assert identities[0].difference_from(identities[1]) == ""
    other = identities[0].model_copy(update={"request": resolved(HUNYUAN, flow_shift=17.0)})
    assert identities[0].difference_from(other).startswith("another request: ")


@pytest.mark.parametrize(
    ("preset", "fields", "file", "text"),
    [
        (
            HUNYUAN,
            {"few_step": "lightx2v-4step"},
            None,
            "few_step=lightx2v-4step is not a few-step preset of hunyuan-video: try "
            "fasthunyuan-6step, accvideo-5step, or none",
        ),
        (
            "demo",
            {"few_step": "lightx2v-4step"},
            None,
            "few_step=lightx2v-4step with demo, which has no few-step presets: leave it out",
        ),
        (
            "demo",
            {"few_step": "file"},
            None,
            "few_step=file, and no file names settings: leave it out, or name a preset",
        ),
        (
            "demo",
            {},
            FewStep(sampler="euler"),
            "few_step=file sets sampler=euler, which is not an option of demo: pass few_step=none",
        ),
        (
            "demo",
            {},
            FewStep(num_inference_steps=3, sigmas=(1.0, 0.5)),
            "num_inference_steps=3 with 2 sigmas: there must be one sigma a step; leave "
            "num_inference_steps out",
        ),
    ],
)
def test_refusals(preset: str, fields: dict[str, Any], file: FewStep | None, text: str) -> None:
    with pytest.raises(RequestError) as raised:
        resolved(preset, file, **fields)
    assert str(raised.value) == text


@pytest.mark.parametrize("name", ["", "a b", "../x", "-x", "a" * 65, "é"])
def test_names_of_presets_are_plain(name: str) -> None:
    with pytest.raises(RequestError, match="few_step"):
        VideoRequest(prompt="a", few_step=name)


def test_settings_of_a_file() -> None:
    metadata = {METADATA_KEY: '{"num_inference_steps": 4, "sampler": "euler"}', "author": "x"}
    settings = FewStep.from_metadata(metadata, LORA)
    assert settings == FewStep(num_inference_steps=4, sampler="euler")
    assert str(settings) == "sampler=euler num_inference_steps=4"
    assert FewStep.from_metadata({"author": "x"}, LORA) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "4",
        "[" * 10_000,
        '{"num_inference_steps": 0}',
        '{"num_inference_steps": true}',
        '{"sigmas": [0.5, 0.5]}',
        '{"sigmas": [1.0, NaN]}',
        '{"guidance_scale": Infinity}',
        '{"sampler": "magic"}',
        '{"steps": 4}',
        '{"prompt": "a cat"}',
    ],
)
def test_damaged_settings_of_a_file_are_refused_in_one_line(text: str) -> None:
    with pytest.raises(ModelError) as raised:
        FewStep.from_metadata({METADATA_KEY: text}, LORA)
    message = one_line(raised.value)
    assert message.startswith(f"{LORA} has metadata {METADATA_KEY} that longtake cannot read: ")
    assert "\n" not in message and len(message) < 300


def test_files_of_one_request_must_agree() -> None:
    named = [("high", FOUR), ("style", None), ("low", FOUR)]
    assert common_settings(named) == FOUR
    assert common_settings([("style", None)]) is None
    with pytest.raises(RequestError) as raised:
        common_settings([("a", FewStep(num_inference_steps=4)), ("b", FewStep(flow_shift=5.0))])
    assert str(raised.value) == (
        "a is made for num_inference_steps=4, and b for flow_shift=5: say by few_step which preset "
        "holds, or few_step=none"
    )


@pytest.fixture(scope="module")
def outline() -> EngineOutline:
    return EngineOutline(EngineConfig(model="demo", device="cpu"))


def lora_made_for(file: Path, settings: str, model: str = "demo") -> str:
    """A LoRA of a bundled model, with settings in its metadata."""
    save_lora(file, str(bundled()[model]), ["transformer_blocks.0.attn.to_q"], seed=0)
    save_file(load_file(file), file, {METADATA_KEY: settings})
    return str(file)


def test_a_loras_file_says_what_it_is_made_for(outline: EngineOutline, tmp_path: Path) -> None:
    three = lora_made_for(tmp_path / "three.safetensors", '{"num_inference_steps": 3}')
    two = lora_made_for(tmp_path / "two.safetensors", '{"num_inference_steps": 2}')
    broken = lora_made_for(tmp_path / "broken.safetensors", '{"num_inference_steps": 0}')

    def steps(*lora: str, **fields: Any) -> tuple[int, str | None]:
        request = outline.resolve(VideoRequest(prompt="a", lora=lora, **fields))
        assert outline.resolve(request) == request
        return request.num_inference_steps, request.few_step

    assert steps(three) == steps(three, three) == (3, "file")
    assert steps(f"{three}:0") == (24, None)
    assert steps(three, f"{two}:0") == (3, "file")
    assert steps(three, few_step="none") == (24, "none")
    assert steps(three, num_inference_steps=5) == (5, "file")
    assert steps(three, two, few_step="none") == (24, "none")
    assert steps(broken, few_step="none") == (24, "none")
    with pytest.raises(RequestError, match="is made for num_inference_steps=3, and .*two.safe"):
        steps(three, two)
    with pytest.raises(RequestError, match="broken.safetensors has metadata longtake.few_step"):
        steps(broken)


def test_a_file_of_weights_says_what_it_is_made_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = bundled()["demo"] / "transformer"
    file = tmp_path / "distilled.safetensors"
    (whole,) = folder.glob("*.safetensors")
    save_file(load_file(whole), file, {METADATA_KEY: '{"num_inference_steps": 2}'})
    outline = EngineOutline(EngineConfig(model="demo", device="cpu", transformer=file))
    resolved = outline.resolve(VideoRequest(prompt="a", seed=0))
    assert (resolved.num_inference_steps, resolved.few_step) == (2, "file")
    command = ["plan", "--model", "demo", "--transformer", str(file), "--gpu", "l40", "--json"]
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["request"]["num_inference_steps"] == 2
    three = lora_made_for(tmp_path / "three.safetensors", '{"num_inference_steps": 3}')
    with pytest.raises(RequestError) as raised:
        outline.resolve(VideoRequest(prompt="a", lora=(three,)))
    assert str(raised.value).startswith("transformer is made for num_inference_steps=2, and ")
