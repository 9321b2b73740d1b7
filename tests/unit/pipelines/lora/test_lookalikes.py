"""LoRAs of Flux, whose blocks have the names and the width of HunyuanVideo's, are refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from longtake.configs.fields.lora import LoraUse
from longtake.errors import RequestError
from longtake.pipelines.loading.checkpoint import Checkpoint
from longtake.pipelines.lora.lora_file import LoraFile
from longtake.pipelines.lora.match import match
from longtake.pipelines.lora.targets import LoraTargets, lora_targets
from longtake.pipelines.registry import family_of

WIDTH = 3072
SPELLINGS: Mapping[str, Callable[[str, int], tuple[str, int]]] = {
    "kohya's": lambda kind, index: {
        "double": (f"lora_unet_double_blocks_{index}_img_attn_qkv", 3 * WIDTH),
        "single": (f"lora_unet_single_blocks_{index}_linear1", 7 * WIDTH),
    }[kind],
    "ComfyUI's": lambda kind, index: {
        "double": (f"diffusion_model.double_blocks.{index}.img_attn.qkv", 3 * WIDTH),
        "single": (f"diffusion_model.single_blocks.{index}.linear1", 7 * WIDTH),
    }[kind],
    "diffusers'": lambda kind, index: {
        "double": (f"transformer.transformer_blocks.{index}.attn.to_q", WIDTH),
        "single": (f"transformer.single_transformer_blocks.{index}.proj_mlp", 4 * WIDTH),
    }[kind],
}


@pytest.fixture(scope="module")
def released() -> Mapping[str, LoraTargets]:
    """The transformer of HunyuanVideo as released."""
    checkpoint = Checkpoint.open("hunyuan-video", configs_only=True)
    return lora_targets(checkpoint, family_of(checkpoint))


def save(path: Path, spelling: str, blocks: Mapping[str, Sequence[int]], **metadata: str) -> Path:
    """A LoRA of rank 1 that changes a layer in each of some blocks."""
    tensors = {}
    for kind, indices in blocks.items():
        for name, rows in (SPELLINGS[spelling](kind, index) for index in indices):
            tensors[f"{name}.lora_down.weight"] = torch.zeros(1, WIDTH, dtype=torch.float8_e4m3fn)
            tensors[f"{name}.lora_up.weight"] = torch.zeros(rows, 1, dtype=torch.float8_e4m3fn)
    save_file(tensors, path, {key.replace("__", "."): each for key, each in metadata.items()})
    return path


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_all_blocks_of_flux_and_no_others(
    released: Mapping[str, LoraTargets], tmp_path: Path, spelling: str
) -> None:
    for blocks, refused in (
        ({"double": range(19), "single": range(38)}, True),
        ({"single": range(38)}, True),
        ({"double": range(20), "single": range(40)}, False),
        ({"double": range(18), "single": range(38)}, False),
        ({"double": range(1, 19)}, False),
    ):
        path = save(tmp_path / "lora.safetensors", spelling, blocks)
        if refused:
            with pytest.raises(RequestError, match="are the layers of Flux.*: it is for Flux"):
                match(LoraFile.read(path), LoraUse(str(path)), released, partial=True)
        else:
            assert not match(LoraFile.read(path), LoraUse(str(path)), released).left


def test_metadata_name_the_model(released: Mapping[str, LoraTargets], tmp_path: Path) -> None:
    for metadata, refused in (
        ({"modelspec__architecture": "flux-1-dev/lora"}, True),
        ({"modelspec__architecture": "Flux.1-dev/lora"}, True),
        ({"ss_base_model_version": "flux1"}, True),
        ({"ss_base_model_version": "chroma"}, True),
        ({"modelspec__architecture": "hunyuan-video/lora"}, False),
        ({"modelspec__architecture": "framepack/lora"}, False),
        ({"modelspec__title": "flux of time"}, False),
    ):
        path = save(tmp_path / "lora.safetensors", "kohya's", {"single": [7]}, **metadata)
        if refused:
            with pytest.raises(RequestError, match="is for Flux, by its metadata") as told:
                match(LoraFile.read(path), LoraUse(str(path)), released, partial=True)
            assert "\n" not in str(told.value)
        else:
            assert not match(LoraFile.read(path), LoraUse(str(path)), released).left
