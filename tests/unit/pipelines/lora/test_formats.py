"""LoRAs of every format change each weight as their definition says, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
import torch

from longtake.configs.lora import parse_lora
from longtake.pipelines.loading.checkpoint import Checkpoint
from longtake.pipelines.lora.lora_file import LoraFile
from longtake.pipelines.lora.match import combine, match
from longtake.pipelines.lora.source import LoraSource
from longtake.pipelines.lora.targets import LoraTargets, lora_targets
from longtake.pipelines.registry import family_of
from tests import lora_files
from tests.lora_files import COMFYUI, TENCENT, WAN, WAN_PICTURES, Formula, Written, write

Modules = Mapping[str, Sequence[str]]
Base = dict[str, torch.Tensor]


class Model:
    """A model's transformer."""

    def __init__(self, folder: str) -> None:
        checkpoint = Checkpoint.open(folder)
        self.targets: dict[str, LoraTargets] = lora_targets(checkpoint, family_of(checkpoint))
        self.source = checkpoint.source("transformer")
        self.base = {name: self.source.read(name) for name in self.source.tensors}

    def fused(self, path: Path, use: str = "") -> Base:
        """All weights with a LoRA, as the loader reads them."""
        found = match(LoraFile.read(path), parse_lora(f"{path}{use}"), self.targets)
        source = LoraSource(self.source, combine([found]).get("transformer", {}))
        return {name: source.read(name) for name in source.tensors}


@pytest.fixture(scope="module")
def models(model: str, wan: Callable[[str], str]) -> dict[str, Model]:
    kinds = {"wan21-t2v", "wan21-i2v"}
    return {"hunyuan": Model(model), **{kind: Model(wan(kind)) for kind in kinds}}


def check(model: Model, written: Written, path: Path, scale: float = 0.5) -> None:
    """The weights are those of the base plus the change; all others are so to the bit."""
    fused = model.fused(written.save(path), f":{scale}")
    assert fused.keys() == model.base.keys() >= written.added.keys()
    for name, before in model.base.items():
        if name not in written.added:
            assert torch.equal(fused[name], before), name
            continue
        assert fused[name].dtype == torch.float32
        expected = before.double() + scale * written.added[name]
        assert (expected - before).abs().max() > 0.01, name
        torch.testing.assert_close(fused[name].double(), expected, rtol=0, atol=2e-6, msg=name)


def dotless(module: str) -> str:
    return "lora_unet_" + module.replace(".", "_")


def prefixed(prefix: str) -> Callable[[str], str]:
    return lambda module: prefix + module


AB, DOWN_UP = lora_files.PEFT, lora_files.KOHYA
SPELLINGS: dict[str, tuple[Callable[[str], str], Formula]] = {
    "without a prefix": (prefixed(""), AB),
    "ComfyUI": (prefixed("diffusion_model."), AB),
    "ComfyUI with alpha": (prefixed("diffusion_model."), DOWN_UP),
    "a full checkpoint of ComfyUI": (prefixed("model.diffusion_model."), AB),
    "diffusers": (prefixed("transformer."), AB),
    "peft": (
        prefixed("base_model.model."),
        lora_files.lora(".lora_A.default.weight", ".lora_B.default.weight"),
    ),
    "old diffusers": (
        prefixed("transformer."),
        lora_files.lora(".lora.down.weight", ".lora.up.weight"),
    ),
    "kohya": (dotless, DOWN_UP),
    "OneTrainer": (lambda module: "lora_transformer_" + module.replace(".", "_"), DOWN_UP),
}
TABLES: dict[str, tuple[str, Modules]] = {
    "Wan's": ("wan21-t2v", WAN),
    "Wan's with pictures": ("wan21-i2v", WAN_PICTURES),
    "Wan's in diffusers": ("wan21-i2v", lora_files.own_names(WAN_PICTURES)),
    "tencent's": ("hunyuan", TENCENT),
    "ComfyUI's": ("hunyuan", COMFYUI),
    "HunyuanVideo's in diffusers": ("hunyuan", lora_files.own_names(TENCENT)),
}


@pytest.mark.parametrize("table", TABLES)
def test_every_spelling_of_every_table(
    models: dict[str, Model], tmp_path: Path, table: str
) -> None:
    kind, modules = TABLES[table]
    for number, (spell, formula) in enumerate(SPELLINGS.values()):
        written = write(models[kind].base, modules, formula, spell)
        check(models[kind], written, tmp_path / f"{number}.safetensors")


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


def lycoris(module: str) -> str:
    return "lycoris_" + module.replace(".", "_")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("table", ["Wan's", "tencent's"])
def test_every_kind_of_change(
    models: dict[str, Model], tmp_path: Path, table: str, kind: str
) -> None:
    name, modules = TABLES[table]
    written = write(models[name].base, modules, KINDS[kind], lycoris)
    check(models[name], written, tmp_path / "lora.safetensors")


@pytest.mark.parametrize(
    "end", [".dora_scale", ".lora_magnitude_vector", ".lora_magnitude_vector.weight"]
)
@pytest.mark.parametrize("formula", [AB, DOWN_UP, lora_files.loha], ids=["A B", "alpha", "LoHa"])
@pytest.mark.parametrize("table", ["Wan's", "tencent's"])
def test_norms_of_rows(
    models: dict[str, Model], tmp_path: Path, table: str, formula: Formula, end: str
) -> None:
    name, modules = TABLES[table]
    modules = {each: owns for each, owns in modules.items() if ":" not in owns[0]}
    base = models[name].base
    written = write(base, modules, formula)
    lora_files.with_norms(written, base, modules, end)
    check(models[name], written, tmp_path / "lora.safetensors")
