"""Which files of Wan-AI's own repositories hold which component."""

from __future__ import annotations

import pytest

from longtake.configs.families import load_reference
from longtake.pipelines.models.wan.family import FAMILY

_T5 = "models_t5_umt5-xxl-enc-bf16.pth"
_CLIP = "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth"
_TOKENIZER = ("google/umt5-xxl/special_tokens_map.json", "google/umt5-xxl/tokenizer.json")
_OTHERS = ("README.md", "assets/logo.png", "config.json", "xlm-roberta-large/tokenizer.json")


def _shards(count: int, folder: str = "") -> tuple[str, ...]:
    stem = f"{folder}diffusion_pytorch_model"
    return tuple(f"{stem}-{each:05}-of-{count:05}.safetensors" for each in range(1, count + 1))


REPOSITORIES: dict[str, dict[str, tuple[str, ...]]] = {
    "Wan2.1-T2V-1.3B": {
        "transformer": ("diffusion_pytorch_model.safetensors",),
        "vae": ("Wan2.1_VAE.pth",),
    },
    "Wan2.1-I2V-14B-720P": {
        "transformer": _shards(7),
        "vae": ("Wan2.1_VAE.pth",),
        "image_encoder": (_CLIP,),
    },
    "Wan2.2-T2V-A14B": {
        "transformer": _shards(6, "high_noise_model/"),
        "transformer_2": _shards(6, "low_noise_model/"),
        "vae": ("Wan2.1_VAE.pth",),
    },
    "Wan2.2-TI2V-5B": {"transformer": _shards(3), "vae": ("Wan2.2_VAE.pth",)},
}
"""Files of weights by component, beside the text encoder, which all of them hold."""


@pytest.mark.parametrize("repository", REPOSITORIES)
def test_components_of_a_repository(repository: str) -> None:
    (layout,) = load_reference(FAMILY.folder_layouts)
    components = {
        **REPOSITORIES[repository],
        "text_encoder": (_T5,),
        "tokenizer": _TOKENIZER,
    }
    paths = [path for files in components.values() for path in files]
    indexes = {
        f"{path.partition('-0')[0]}.safetensors.index.json" for path in paths if "-0" in path
    }
    assert layout.find([*reversed(paths), *indexes, *_OTHERS]) == components
    assert layout.recognizes(paths)


@pytest.mark.parametrize(
    "paths",
    [
        ("diffusion_pytorch_model.safetensors", "config.json"),
        ("model_index.json", "transformer/diffusion_pytorch_model.safetensors"),
        (_T5, "Wan2.1_VAE.pth"),
        ("low_noise_model/diffusion_pytorch_model.safetensors", "Wan2.1_VAE.pth"),
    ],
)
def test_other_folders(paths: tuple[str, ...]) -> None:
    (layout,) = load_reference(FAMILY.folder_layouts)
    assert not layout.recognizes(paths)
