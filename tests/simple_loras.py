"""LoRAs in peft's names for layers of a model, and the model with one fused by arithmetic."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

RANK, ALPHA = 2, 3.0
FACTOR = ALPHA / RANK


def save_lora(
    path: Path, folder: str, layers: Sequence[str], seed: int, component: str = "transformer"
) -> Path:
    """Save a random LoRA of some linear layers of a model's transformer.

    Args:
        path: The file.
        folder: The model's folder.
        layers: Names of the layers in the transformer.
        seed: Of the values.
        component: The transformer's name.
    """
    shapes = {name: each.shape for name, each in weights_of(folder, component).items()}
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in layers:
        rows, columns = shapes[f"{layer}.weight"]
        down, up = ((RANK, columns), (rows, RANK))
        name = f"transformer.{layer}"
        tensors[f"{name}.lora_A.weight"] = torch.randn(down, generator=generator) * 0.3
        tensors[f"{name}.lora_B.weight"] = torch.randn(up, generator=generator) * 0.3
        tensors[f"{name}.alpha"] = torch.tensor(ALPHA)
    save_file(tensors, path)
    return path


def fused_model(target: Path, folder: str, lora: Path, scale: float = 1.0) -> str:
    """Save a copy of a model, with W + scale * alpha / rank * B A for each weight of a LoRA."""
    shutil.copytree(folder, target)
    weights, parts = weights_of(folder), load_file(lora)
    for name in parts:
        if name.endswith(".lora_A.weight"):
            layer = name.removesuffix(".lora_A.weight")
            delta = parts[f"{layer}.lora_B.weight"] @ parts[name]
            weights[f"{layer.removeprefix('transformer.')}.weight"] += scale * FACTOR * delta
    (file,) = (target / "transformer").glob("*.safetensors")
    save_file(weights, file)
    return str(target)


def weights_of(folder: str, component: str = "transformer") -> dict[str, torch.Tensor]:
    """The tensors of a model's transformer by name."""
    (file,) = (Path(folder) / component).glob("*.safetensors")
    return load_file(file)
