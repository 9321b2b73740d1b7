"""Which files of Wan-AI's own repositories hold which component."""

from __future__ import annotations

from pathlib import Path

import pytest

from longtake.configs.families import load_reference
from longtake.pipelines.models.wan.family import FAMILY

_STEM = "diffusion_pytorch_model"
_T5 = "models_t5_umt5-xxl-enc-bf16.pth"
_CLIP = "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth"
_OTHERS = ("README.md", "config.json", "google/umt5-xxl/tokenizer.json", "xlm-roberta-large/x.json")


def _shards(count: int, folder: str = "") -> list[str]:
    shards = [f"{_STEM}-{each:05}-of-{count:05}.safetensors" for each in range(1, count + 1)]
    return [f"{folder}{name}" for name in (*shards, f"{_STEM}.safetensors.index.json")]


REPOSITORIES: dict[str, tuple[dict[str, str], list[str]]] = {
    "Wan2.1-T2V-1.3B": ({"transformer": f"{_STEM}.safetensors", "vae": "Wan2.1_VAE.pth"}, []),
    "Wan2.1-I2V-14B-720P": (
        {"transformer": "", "vae": "Wan2.1_VAE.pth", "image_encoder": _CLIP},
        _shards(7),
    ),
    "Wan2.2-T2V-A14B": (
        {
            "transformer": "high_noise_model",
            "transformer_2": "low_noise_model",
            "vae": "Wan2.1_VAE.pth",
        },
        [*_shards(6, "high_noise_model/"), *_shards(6, "low_noise_model/")],
    ),
    "Wan2.2-TI2V-5B": ({"transformer": "", "vae": "Wan2.2_VAE.pth"}, _shards(3)),
}
"""Where each component is, beside the text encoder, and the shards in the folders."""


def _touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


@pytest.mark.parametrize("repository", REPOSITORIES)
def test_components_of_a_repository(repository: str, tmp_path: Path) -> None:
    components, shards = REPOSITORIES[repository]
    files = [path for path in components.values() if "." in path]
    _touch(tmp_path, *files, *shards, _T5, *_OTHERS)
    (kind,) = load_reference(FAMILY.folders)
    expected = {name: tmp_path / path for name, path in components.items()}
    assert kind.find(tmp_path) == {**expected, "text_encoder": tmp_path / _T5}
    assert kind.find_folders(tmp_path) == {"tokenizer": tmp_path / "google" / "umt5-xxl"}


@pytest.mark.parametrize(
    "names",
    [
        (f"{_STEM}.safetensors", "config.json"),
        (f"transformer/{_STEM}.safetensors", "Wan2.1_VAE.pth"),
        (_T5, "Wan2.1_VAE.pth"),
        (f"low_noise_model/{_STEM}.safetensors", "Wan2.1_VAE.pth"),
    ],
)
def test_other_folders(names: tuple[str, ...], tmp_path: Path) -> None:
    _touch(tmp_path, *names)
    (kind,) = load_reference(FAMILY.folders)
    assert kind.find(tmp_path) == {}
