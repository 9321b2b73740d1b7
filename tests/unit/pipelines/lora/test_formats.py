"""LoRAs of every format change each weight as their definition says, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from longtake.errors import RequestError
from tests import lora_files
from tests.lora_files import COMFYUI, TENCENT, WAN, WAN_PICTURES, Formula, Written, write
from tests.lora_targets import Transformer

Modules = Mapping[str, Sequence[str]]
Transformers = Callable[[str], Transformer]

TABLES: dict[str, tuple[str, Modules]] = {
    "Wan's": ("wan21-t2v", WAN),
    "Wan's with pictures": ("wan21-i2v", WAN_PICTURES),
    "Wan's in diffusers": ("wan21-i2v", lora_files.own_names(WAN_PICTURES)),
    "tencent's": ("hunyuan", TENCENT),
    "ComfyUI's": ("hunyuan", COMFYUI),
    "HunyuanVideo's in diffusers": ("hunyuan", lora_files.own_names(TENCENT)),
}


def prefixed(prefix: str) -> Callable[[str], str]:
    return lambda module: prefix + module


def dotless(prefix: str) -> Callable[[str], str]:
    return lambda module: prefix + module.replace(".", "_")


AB, ALPHA = lora_files.PEFT, lora_files.KOHYA
PEFT = lora_files.lora(".lora_A.default.weight", ".lora_B.default.weight")
SPELLINGS: dict[str, tuple[Callable[[str], str], Formula]] = {
    "without a prefix": (prefixed(""), AB),
    "ComfyUI": (prefixed("diffusion_model."), AB),
    "ComfyUI with alpha": (prefixed("diffusion_model."), ALPHA),
    "a full checkpoint of ComfyUI": (prefixed("model.diffusion_model."), AB),
    "diffusers": (prefixed("transformer."), AB),
    "old diffusers": (
        prefixed("transformer."),
        lora_files.lora(".lora.down.weight", ".lora.up.weight"),
    ),
    "peft": (prefixed("base_model.model."), PEFT),
    "kohya and musubi": (dotless("lora_unet_"), ALPHA),
    "OneTrainer": (dotless("lora_transformer_"), ALPHA),
    "VideoX-Fun": (dotless("lora_unet__"), ALPHA),
    "DiffSynth-Studio": (prefixed("pipe.dit."), PEFT),
}
OWN_SPELLING = dotless("Hunyuan_video_I2V_lora_")
"""Of tencent's LoRAs, which no other family reads."""


@pytest.mark.parametrize("table", TABLES)
def test_every_spelling_of_every_table(
    transformers: Transformers, tmp_path: Path, table: str
) -> None:
    kind, modules = TABLES[table]
    transformer = transformers(kind)
    for number, (spell, formula) in enumerate(SPELLINGS.values()):
        written = write(transformer.base, modules, formula, spell)
        transformer.check(written, tmp_path / f"{number}.safetensors")
    written, path = write(transformer.base, modules, ALPHA, OWN_SPELLING), tmp_path / "own"
    if kind == "hunyuan":
        transformer.check(written, path)
    else:
        with pytest.raises(RequestError, match="holds Hunyuan_video_I2V_lora_"):
            transformer.check(written, path)


KINDS: dict[str, Formula] = {
    "LoCon": lora_files.tucker_lora,
    "LoHa": lora_files.loha,
    "LoHa of Tucker": lora_files.tucker_loha,
    "differences": lora_files.diff,
    **{
        f"LoKr {one} {other}": lora_files.lokr(one, other)
        for one in ("whole", "low")
        for other in ("whole", "low", "tucker")
    },
}


@pytest.mark.parametrize("table", ["Wan's", "tencent's"])
def test_every_kind_of_change(transformers: Transformers, tmp_path: Path, table: str) -> None:
    kind, modules = TABLES[table]
    transformer = transformers(kind)
    for name, formula in KINDS.items():
        written = write(transformer.base, modules, formula, dotless("lycoris_"))
        transformer.check(written, tmp_path / f"{name}.safetensors")


@pytest.mark.parametrize(
    "end", [".dora_scale", ".lora_magnitude_vector", ".lora_magnitude_vector.default.weight"]
)
@pytest.mark.parametrize("table", ["Wan's", "tencent's"])
def test_norms_of_rows(transformers: Transformers, tmp_path: Path, table: str, end: str) -> None:
    kind, modules = TABLES[table]
    transformer = transformers(kind)
    modules = {name: owns for name, owns in modules.items() if ":" not in owns[0]}
    for number, formula in enumerate((AB, ALPHA, lora_files.loha)):
        written = write(transformer.base, modules, formula)
        lora_files.with_norms(written, transformer.base, modules, end)
        transformer.check(written, tmp_path / f"{number}.safetensors")


WAN_DIFFERENCES = {
    "blocks.0.norm3.diff": "blocks.0.norm2.weight",
    "blocks.0.norm3.diff_b": "blocks.0.norm2.bias",
    "blocks.1.norm3.w_norm": "blocks.1.norm2.weight",
    "blocks.1.norm3.b_norm": "blocks.1.norm2.bias",
    "blocks.0.self_attn.norm_q.diff": "blocks.0.attn1.norm_q.weight",
    "blocks.1.cross_attn.norm_k.diff": "blocks.1.attn2.norm_k.weight",
    "blocks.0.diff_m": "blocks.0.scale_shift_table",
    "blocks.1.modulation.diff": "blocks.1.scale_shift_table",
    "head.diff_m": "scale_shift_table",
    "head.head.diff": "proj_out.weight",
    "head.head.diff_b": "proj_out.bias",
    "patch_embedding.diff": "patch_embedding.weight",
    "patch_embedding.diff_b": "patch_embedding.bias",
    "blocks.0.self_attn.q.diff_b": "blocks.0.attn1.to_q.bias",
    "blocks.1.ffn.0.diff_b": "blocks.1.ffn.net.0.proj.bias",
    "time_projection.1.diff_b": "condition_embedder.time_proj.bias",
}
"""Tensors of lightx2v's LoRAs, most of which diffusers drops, and what they change."""


def test_step_distillations_of_lightx2v(transformers: Transformers, tmp_path: Path) -> None:
    transformer = transformers("wan21-t2v")
    linears = {name: owns for name, owns in WAN.items() if name.startswith("blocks.")}
    spell = prefixed("diffusion_model.")
    formula = lora_files.lora(".lora_down.weight", ".lora_up.weight")
    written = write(transformer.base, linears, formula, spell)
    generator = torch.Generator().manual_seed(9)
    for name, own in WAN_DIFFERENCES.items():
        values = lora_files.random(generator, *transformer.base[own].shape)
        written.tensors[spell(name)] = values.bfloat16()
        written.added[own] = values.bfloat16().double()
    transformer.check(written, tmp_path / "lora.safetensors", scale=-1.0)


def test_biases_of_fused_layers_and_of_peft(transformers: Transformers, tmp_path: Path) -> None:
    transformer = transformers("hunyuan")
    modules = {name: TENCENT[name] for name in ("single_blocks.1.linear1", "img_in.proj")}
    written = write(transformer.base, modules, ALPHA)
    for module, end, factor in (
        ("single_blocks.1.linear1", ".diff_b", 1.0),
        ("img_in.proj", ".lora_B.bias", lora_files.ALPHA / lora_files.RANK),
    ):
        owns = [f"{name}.bias" for name in modules[module]]
        sizes = [len(transformer.base[name]) for name in owns]
        values = lora_files.random(torch.Generator().manual_seed(1), sum(sizes))
        written.tensors[module + end] = values
        written.added |= dict(zip(owns, (values.double() * factor).split(sizes), strict=True))
    transformer.check(written, tmp_path / "lora.safetensors")


PEFT_CONFIGS: dict[str, tuple[str, dict[str, Any], Callable[[str], float]]] = {
    "alpha": ("transformer.", {"lora_alpha": 6, "r": 3}, lambda name: 2.0),
    "alpha without a prefix": ("", {"lora_alpha": 6, "r": 3}, lambda name: 2.0),
    "of another component": ("text_encoder.", {"lora_alpha": 6, "r": 3}, lambda name: 1.0),
    "the square root of the rank": (
        "transformer.",
        {"lora_alpha": 6, "use_rslora": True},
        lambda name: 6 / 3**0.5,
    ),
    "alphas of some": (
        "transformer.",
        {"lora_alpha": 6, "alpha_pattern": {"attn1.to_q": 1.5}},
        lambda name: 0.5 if "attn1.to_q" in name else 2.0,
    ),
}


@pytest.mark.parametrize("name", PEFT_CONFIGS)
def test_alphas_in_metadata(transformers: Transformers, tmp_path: Path, name: str) -> None:
    prefix, config, factor = PEFT_CONFIGS[name]
    transformer = transformers("wan21-t2v")
    written = write(transformer.base, lora_files.own_names(WAN), AB, prefixed("transformer."))
    written.added = {name: each * factor(name) for name, each in written.added.items()}
    lora_files.with_peft_alpha(written, prefix, **config)
    transformer.check(written, tmp_path / "lora.safetensors")


def test_alphas_in_metadata_hold_for_names_without_a_component(
    transformers: Transformers, tmp_path: Path
) -> None:
    transformer = transformers("wan21-t2v")
    written = write(transformer.base, WAN, AB, prefixed("diffusion_model."))
    written.added = {name: each * 2.0 for name, each in written.added.items()}
    lora_files.with_peft_alpha(written, "transformer.", lora_alpha=6, r=3)
    transformer.check(written, tmp_path / "lora.safetensors")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn])
def test_values_in_fewer_bits(
    transformers: Transformers, tmp_path: Path, dtype: torch.dtype
) -> None:
    transformer = transformers("wan21-t2v")

    def rounded(shape: Sequence[int], generator: torch.Generator) -> lora_files.Parts:
        parts, _ = AB(shape, generator)
        stored = {name: each.to(dtype) for name, each in parts.items()}
        down, up = (each.double().flatten(1) for each in stored.values())
        return stored, (up @ down).reshape(list(shape))

    written: Written = write(transformer.base, WAN, rounded)
    transformer.check(written, tmp_path / "lora.safetensors")
