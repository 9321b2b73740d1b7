"""What files of weights and LoRAs are said to be, for presets at full size and for the demo."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from longtake.cli import main as cli
from longtake.configs.models import bundled
from longtake.engine.tools.inspection import CheckpointReport, LoraReport, inspect_path
from longtake.errors import ModelError
from longtake.pipelines import registry
from longtake.pipelines.checkpoints.recognition import layouts_of
from longtake.pipelines.loading.checkpoint import Checkpoint
from longtake.pipelines.lora.targets import lora_targets
from tests import checkpoint_files, foreign_hunyuan, lora_files
from tests.lora_files import TENCENT, Written

Tensors = dict[str, torch.Tensor]


def dotless(module: str) -> str:
    return "lora_unet_" + module.replace(".", "_")


@pytest.fixture(scope="module")
def demo() -> Tensors:
    """The demo's transformer."""
    folder = bundled()["demo"] / "transformer"
    return dict(load_file(folder / "diffusion_pytorch_model.safetensors"))


@pytest.fixture(scope="module")
def demo_lora(demo: Tensors) -> Written:
    return lora_files.write(demo, TENCENT, lora_files.KOHYA, dotless)


def printed(capsys: pytest.CaptureFixture[str], code: int, *arguments: object) -> str:
    """What ``longtake inspect`` prints."""
    assert cli.main(["inspect", *map(str, arguments)]) == code
    return capsys.readouterr().out


def described(capsys: pytest.CaptureFixture[str], code: int, *arguments: object) -> Any:
    return json.loads(printed(capsys, code, *arguments, "--json"))


def hollow(path: Path, shapes: dict[str, tuple[int, ...]]) -> Path:
    """A safetensors file of zeros in bfloat16 that takes no space on the disk."""
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return path


def file_shapes(preset: str, component: str, layout_name: str) -> dict[str, tuple[int, ...]]:
    """Shapes of a preset's component in a layout: rows of tensors that are split add up."""
    checkpoint = Checkpoint.open(preset, configs_only=True)
    (layout,) = [
        each
        for each in layouts_of(registry.family_of(checkpoint), component)
        if each.name == layout_name and each.class_name == checkpoint.component_class(component)
    ]
    config = checkpoint.config(component)
    shapes, found = dict(layout.shapes(config)), dict[str, tuple[int, ...]]()
    for name, pieces in layout.names(config).items():
        for piece in pieces:
            end = shapes[name][0] if piece.rows is None else piece.rows[1]
            rows = max(end, found.get(piece.name, (0,))[0])
            found[piece.name] = (rows, *shapes[name][1:])
    return found


@pytest.mark.parametrize(
    ("preset", "component", "layout", "prefix", "fits"),
    [
        (
            *("hunyuan-video", "transformer", "tencent's", "model.diffusion_model."),
            {"hunyuan-video"},
        ),
        ("hunyuan-video", "vae", "diffusers' and tencent's", "vae.", {"hunyuan-video"}),
        ("wan2.2-t2v-a14b", "transformer", "Wan's own", "", {"wan2.1-t2v-14b", "wan2.2-t2v-a14b"}),
        ("wan2.1-i2v-14b-720p", "transformer", "diffusers'", "", {"wan2.1-i2v-14b-480p"}),
        ("wan2.1-t2v-1.3b", "text_encoder", "Wan's own", "", {"wan2.2-i2v-a14b"}),
    ],
)
def test_preset_at_full_size(
    *, preset: str, component: str, layout: str, prefix: str, fits: set[str], tmp_path: Path
) -> None:
    shapes = file_shapes(preset, component, layout)
    path = hollow(tmp_path / "x.safetensors", {prefix + name: shapes[name] for name in shapes})
    report = inspect_path(path)
    assert isinstance(report, CheckpointReport) and report.is_usable
    (found,) = report.components
    assert (found.recognized.layout.name, found.recognized.prefix) == (layout, prefix)
    assert found.recognized.layout.component == component and found.problem == ""
    assert fits | {preset} <= {model for model, _ in found.fits}
    assert found.num_values == sum(map(math.prod, shapes.values()))
    if preset == "wan2.2-t2v-a14b":
        assert {each for model, each in found.fits if model == preset} == {
            "transformer",
            "transformer_2",
        }
    other = inspect_path(path, "wan2.2-ti2v-5b" if component == "transformer" else "demo")
    assert isinstance(other, CheckpointReport) and not other.is_usable


def test_checkpoints_of_the_demo(
    demo: Tensors, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.safetensors"
    vae = load_file(bundled()["demo"] / "vae" / "diffusion_pytorch_model.safetensors")
    own = {f"model.diffusion_model.{name}": each for name, each in demo.items()}
    save_file(own | {f"vae.{name}": each for name, each in vae.items()}, path)
    both = described(capsys, 0, path)
    assert (both["format"], both["dtypes"]) == ("safetensors", {"F16": len(demo) + len(vae)})
    assert [each["component"] for each in both["components"]] == ["transformer", "vae"]
    text = printed(capsys, 0, path)
    assert f"--model demo --transformer {path}" in text and f"--model demo --vae {path}" in text
    text = printed(capsys, 1, path, "--model", "wan2.1-t2v-14b")
    assert "unusable    wan2.1-t2v-14b has no transformer of this family and size" in text
    save_file({name: each for name, each in demo.items() if name != "proj_out.bias"}, path)
    lacking = described(capsys, 1, path)
    assert "lacks proj_out.bias (1 missing)" in lacking["components"][0]["problem"]
    save_file(demo | {"else.weight": torch.zeros(2)}, path)
    assert "holds else.weight" in described(capsys, 1, path)["components"][0]["problem"]
    save_file({"a": torch.zeros(2)}, path)
    assert cli.main(["inspect", str(path)]) == 2
    assert "holds tensors of no layout that is known" in capsys.readouterr().err


def test_other_formats(demo: Tensors, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """tencent's folder has files of torch; of the demo's it cannot be told which it is."""
    scaled = tmp_path / "scaled.safetensors"
    checkpoint_files.save_comfy_scaled(scaled, demo)
    report = described(capsys, 0, scaled)
    assert report["format"] == "fp8_scaled"
    assert report["components"][0]["num_values"] == sum(each.numel() for each in demo.values())
    folder = tmp_path / "HunyuanVideo"
    foreign = foreign_hunyuan.tencent_transformer(demo)
    vae = load_file(bundled()["demo"] / "vae" / "diffusion_pytorch_model.safetensors")
    for name, content in (
        ("transformers/mp_rank_00_model_states.pt", {"module": foreign}),
        ("vae/pytorch_model.pt", {f"vae.{name}": each for name, each in vae.items()}),
    ):
        (folder / "hunyuan-video-t2v-720p" / name).parent.mkdir(parents=True, exist_ok=True)
        torch.save(content, folder / "hunyuan-video-t2v-720p" / name)
    report = described(capsys, 1, folder)
    assert report["publisher"] == "tencent's text to video"
    assert "fits several models" in report["problem"]
    assert [each["format"] for each in report["parts"]] == ["torch", "torch"]
    layouts = [each["components"][0]["layout"] for each in report["parts"]]
    assert layouts == ["tencent's", "diffusers' and tencent's"]
    assert all(each["usable"] for each in report["parts"])
    assert "tencent's text to video folder" in printed(capsys, 1, folder)


def test_lora_of_every_match(
    demo: Tensors, demo_lora: Written, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = demo_lora.save(tmp_path / "style.safetensors")
    report = described(capsys, 0, path)
    assert [each["model"] for each in report["fits"]] == ["demo", "demo-i2v"]
    applied, left = report["fits"][0]["applied"], report["fits"][0]["left"]
    assert {*applied["transformer"]} == demo_lora.added.keys() and left == []
    assert {*demo_lora.tensors} == {
        name for each in report["adapters"] for name in each["parts"].values()
    }
    text = printed(capsys, 0, path)
    assert f"--model demo --lora {path}" in text
    assert "rank        3, alpha over rank 1.5" in text
    assert "    1 x transformer.transformer_blocks.*.attn.to_out.0.weight" in text
    save_file(demo_lora.tensors, path, {"longtake.few_step": '{"num_inference_steps": 6}'})
    assert "made for    num_inference_steps=6\n" in printed(capsys, 0, path)
    save_file(demo_lora.tensors, path, {"longtake.few_step": "6"})
    assert cli.main(["inspect", str(path)]) == 2
    assert "metadata longtake.few_step that longtake cannot read" in capsys.readouterr().err
    lines = printed(capsys, 1, demo_lora.save(path), "--model", "wan2.1-t2v-1.3b").splitlines()
    assert any("the model lacks" in line for line in lines)


def test_lora_that_fits_in_part(
    demo_lora: Written, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "style.safetensors"
    ends = ("down", "up")
    text_encoder = {f"lora_te_x.lora_{end}.weight": torch.zeros(3, 3) for end in ends}
    save_file(demo_lora.tensors | text_encoder, path)
    assert {*described(capsys, 1, path)["fits"][0]["left"]} == {*text_encoder}
    text = printed(capsys, 1, path, "--model", "demo")
    assert "left out    2 tensors that demo lacks: refused" in text
    assert "    1 x lora_te_x.lora_down.weight" in text
    save_file(demo_lora.tensors | {"\x1b[2J\n.alpha": torch.tensor(1.0)}, path)
    assert r"    1 x \x1b[2J\n.alpha" in printed(capsys, 1, path, "--model", "demo")
    for end, value in (("up", math.nan), ("down", math.inf)):
        save_file(demo_lora.tensors | {f"x.lora_{end}.weight": torch.full((3, 3), value)}, path)
        assert cli.main(["inspect", str(path)]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1


def test_lora_of_wan_at_full_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It fits Wan 2.1 and either expert of Wan 2.2, which must be named."""
    checkpoint = Checkpoint.open("wan2.2-t2v-a14b", configs_only=True)
    targets = lora_targets(checkpoint, registry.family_of(checkpoint))["transformer"]
    shapes: dict[str, tuple[int, ...]] = {}
    for block in range(40):
        rows, columns = targets.shapes["blocks.0.attn1.to_q.weight"]
        shapes[f"diffusion_model.blocks.{block}.self_attn.q.lora_down.weight"] = (8, columns)
        shapes[f"diffusion_model.blocks.{block}.self_attn.q.lora_up.weight"] = (rows, 8)
    path = hollow(tmp_path / "high.safetensors", shapes)
    report = inspect_path(path)
    assert isinstance(report, LoraReport) and report.is_usable
    assert {(fit.model, fit.component) for fit in report.fits} >= {
        ("wan2.1-t2v-14b", None),
        ("wan2.2-t2v-a14b", "transformer"),
        ("wan2.2-t2v-a14b", "transformer_2"),
    }
    assert "wan2.1-t2v-1.3b" not in {fit.model for fit in report.fits}
    text = printed(capsys, 0, path)
    assert "   40 x transformer.blocks.*.attn1.to_q.weight" in text
    assert f"--model wan2.2-t2v-a14b --lora {path}@transformer_2" in text


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "whole safetensors file"), (b"\x80\x02}q\x00.", "pickle"), (b"x" * 100, "longer than")],
)
def test_damaged_files(content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match=words):
        inspect_path(tmp_path / "x.safetensors")
