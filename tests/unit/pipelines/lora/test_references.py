"""At the sizes of real models, LoRAs reach the rows that diffusers' converters put them in."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from diffusers.loaders import lora_conversion_utils as converters
from safetensors.torch import save_file

from longtake.configs.fields.lora import LoraUse
from longtake.pipelines.loading.checkpoint import Checkpoint
from longtake.pipelines.lora.lora_file import LoraFile
from longtake.pipelines.lora.match import Deltas, match
from longtake.pipelines.lora.targets import lora_targets
from longtake.pipelines.registry import family_of

Tensors = dict[str, torch.Tensor]
WIDTH = 3072
DOUBLE = {
    "img_attn_qkv": (3 * WIDTH, WIDTH),
    "img_attn_proj": (WIDTH, WIDTH),
    "img_mod.linear": (6 * WIDTH, WIDTH),
    "img_mlp.fc1": (4 * WIDTH, WIDTH),
    "img_mlp.fc2": (WIDTH, 4 * WIDTH),
}
HUNYUAN_VIDEO = {
    f"double_blocks.{block}.{name.replace('img', stream)}": shape
    for block in (0, 19)
    for stream in ("img", "txt")
    for name, shape in DOUBLE.items()
} | {
    f"single_blocks.{block}.{name}": shape
    for block in (0, 39)
    for name, shape in {
        "linear1": (7 * WIDTH, WIDTH),
        "linear2": (WIDTH, 5 * WIDTH),
        "modulation.linear": (3 * WIDTH, WIDTH),
    }.items()
}
"""Shapes of modules by tencent's names, without those of which diffusers splits lora_A, too: the
refiner's qkv, and the last modulation."""

WAN_WIDTH = 5120
WAN_BLOCK = {
    **{f"self_attn.{each}": (WAN_WIDTH, WAN_WIDTH) for each in "qkvo"},
    **{f"cross_attn.{each}": (WAN_WIDTH, WAN_WIDTH) for each in ("q", "k", "v", "o")},
    **{f"cross_attn.{each}_img": (WAN_WIDTH, WAN_WIDTH) for each in "kv"},
    "ffn.0": (13824, WAN_WIDTH),
    "ffn.2": (WAN_WIDTH, 13824),
}
WAN = {f"blocks.{block}.{name}": each for block in (0, 39) for name, each in WAN_BLOCK.items()} | {
    "time_embedding.0": (WAN_WIDTH, 256),
    "time_embedding.2": (WAN_WIDTH, WAN_WIDTH),
    "time_projection.1": (6 * WAN_WIDTH, WAN_WIDTH),
    "text_embedding.0": (WAN_WIDTH, 4096),
    "text_embedding.2": (WAN_WIDTH, WAN_WIDTH),
    "img_emb.proj.1": (1280, 1280),
    "img_emb.proj.3": (WAN_WIDTH, 1280),
    "head.head": (64, WAN_WIDTH),
}


def lora(shapes: Mapping[str, tuple[int, int]], down: str, up: str, alpha: bool = False) -> Tensors:
    """A LoRA of rank 2 with random values."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for module, (rows, columns) in shapes.items():
        tensors[f"{module}.{down}.weight"] = torch.randn(2, columns, generator=generator)
        tensors[f"{module}.{up}.weight"] = torch.randn(rows, 2, generator=generator)
        if alpha:
            tensors[f"{module}.alpha"] = torch.tensor(1.0)
    return tensors


def copies(tensors: Tensors) -> Tensors:
    """What a converter may change in place."""
    return {name: each.clone() for name, each in tensors.items()}


def deltas_of(path: Path, preset: str, tensors: Tensors) -> Deltas:
    """Where the tensors of a LoRA belong in a preset, of which only configurations are there."""
    save_file(tensors, path)
    checkpoint = Checkpoint.open(preset, configs_only=True)
    targets = lora_targets(checkpoint, family_of(checkpoint))
    found = match(LoraFile.read(path), LoraUse(str(path)), targets)
    assert not found.left
    return found.deltas["transformer"]


def check(found: Deltas, tensors: Tensors, expected: Tensors) -> None:
    """Each target has the rows of lora_B, and the lora_A, that diffusers' converter gives it."""
    modules = {name.rpartition(".lora_")[0] for name in expected}
    assert {f"transformer.{name.removesuffix('.weight')}" for name in found} == modules
    for name, (delta,) in found.items():
        parts, (begin, end) = delta.adapter.parts, delta.rows
        module = f"transformer.{name.removesuffix('.weight')}"
        assert delta.begin == 0
        assert torch.equal(tensors[parts["up"]][begin:end], expected[f"{module}.lora_B.weight"])
        scaled = tensors[parts["down"]] * delta.adapter.factor
        assert torch.equal(scaled, expected[f"{module}.lora_A.weight"])


@pytest.mark.parametrize("prefix", ["", "transformer.", "diffusion_model."])
def test_tencents_names(tmp_path: Path, prefix: str) -> None:
    shapes = {f"{prefix}{name}": shape for name, shape in HUNYUAN_VIDEO.items()}
    tensors = lora(shapes, "lora_A", "lora_B")
    expected = converters._convert_hunyuan_video_lora_to_diffusers(copies(tensors))
    check(deltas_of(tmp_path / "lora.safetensors", "hunyuan-video", tensors), tensors, expected)


@pytest.mark.parametrize("alpha", [False, True])
def test_wans_names(tmp_path: Path, alpha: bool) -> None:
    blocks = {name: shape for name, shape in WAN.items() if not alpha or "blocks" in name}
    shapes = {f"diffusion_model.{name}": shape for name, shape in blocks.items()}
    tensors = lora(shapes, "lora_down", "lora_up", alpha)
    expected = converters._convert_non_diffusers_wan_lora_to_diffusers(copies(tensors))
    preset = "wan2.1-i2v-14b-480p"
    check(deltas_of(tmp_path / "lora.safetensors", preset, tensors), tensors, expected)


def test_kohyas_names_of_wan(tmp_path: Path) -> None:
    """diffusers takes blocks from 0 on, each whole."""
    blocks = {name: shape for name, shape in WAN.items() if name.startswith("blocks.0.")}
    shapes = {"lora_unet_" + name.replace(".", "_"): shape for name, shape in blocks.items()}
    tensors = lora(shapes, "lora_down", "lora_up", alpha=True)
    expected = converters._convert_musubi_wan_lora_to_diffusers(copies(tensors))
    preset = "wan2.1-i2v-14b-480p"
    check(deltas_of(tmp_path / "lora.safetensors", preset, tensors), tensors, expected)


def test_matching_needs_no_torch(tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    save_file(lora({"img_in.proj": (WIDTH, 64)}, "lora_A", "lora_B"), path)
    script = f"""
import sys
from pathlib import Path
from longtake.configs.fields.lora import parse_lora
from longtake.pipelines.loading.checkpoint import Checkpoint
from longtake.pipelines.lora.lora_file import LoraFile
from longtake.pipelines.lora.match import match
from longtake.pipelines.lora.targets import lora_targets
from longtake.pipelines.registry import family_of
checkpoint = Checkpoint.open("hunyuan-video", configs_only=True)
file = LoraFile.read(Path({str(path)!r}))
found = match(file, parse_lora("x"), lora_targets(checkpoint, family_of(checkpoint)))
print(*found.deltas["transformer"], len(file.sha256), "torch" in sys.modules)
"""
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert printed.stdout.split() == ["x_embedder.proj.weight", "64", "False"], printed.stderr
