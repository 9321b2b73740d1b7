"""A tiny model of the toy family with random weights, saved in diffusers layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

CONFIG = {"latent_channels": 4, "num_layers": 2, "num_heads": 3, "head_size": 16, "text_size": 16}


def save(folder: Path) -> Path:
    """Save a model. The package ``longtake_toy`` must be importable."""
    from longtake_toy.denoiser import ToyDenoiser
    from longtake_toy.spec import SPACE, TIME, ToyConfig

    torch.manual_seed(0)
    denoiser = ToyDenoiser(ToyConfig.model_validate(CONFIG))
    ratios = (TIME, SPACE, SPACE)
    components: dict[str, tuple[str, dict[str, torch.Tensor], dict[str, Any]]] = {
        "transformer": (
            "ToyDenoiser",
            denoiser.state_dict(),
            CONFIG,
        ),
        "vae": ("ConvTranspose3d", nn.ConvTranspose3d(4, 3, ratios, ratios).state_dict(), {}),
        "text_encoder": ("Table", {"bytes": torch.randn(256, CONFIG["text_size"])}, {}),
    }
    for name, (_, tensors, config) in components.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text(json.dumps(config))
        save_file(tensors, folder / name / "model.safetensors")
    classes = {name: ["longtake_toy", kind] for name, (kind, _, _) in components.items()}
    index = {"_class_name": "ToyPipeline", **classes}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder
