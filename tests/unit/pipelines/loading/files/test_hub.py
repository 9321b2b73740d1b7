"""Downloads from the Hugging Face hub."""

from __future__ import annotations

import errno
import shutil
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from longtake.errors import ModelError
from longtake.pipelines import registry
from longtake.pipelines.loading.checkpoint import Checkpoint
from longtake.pipelines.loading.plan import LoadPlan
from tests.rendering import ALONE
from tests.unit.pipelines.loading.test_checkpoint import (
    FP16_INDEX,
    TOKENIZER,
    WEIGHTS,
    check_text,
    edit,
    in_shards,
)


class Hub:
    """A fake hub repository in a folder; records the downloaded files."""

    def __init__(self, files: Path, cache: Path) -> None:
        self._files, self._cache = files, cache
        self.fetched: list[str] = []

    def model_info(self, repository: str, *, revision: str, timeout: float) -> Any:
        assert revision == self._cache.name
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in self._names()])

    def snapshot_download(
        self, repository: str, *, revision: str | None, allow_patterns: list[str]
    ) -> str:
        for name in self._names():
            target = self._cache / name
            if any(fnmatch(name, pattern) for pattern in allow_patterns) and not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(self._files / name, target)
                self.fetched.append(name)
        return str(self._cache)

    def _names(self) -> list[str]:
        files = (path for path in self._files.rglob("*") if path.is_file())
        return [path.relative_to(self._files).as_posix() for path in files]


@pytest.fixture
def hub(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """A repository that also holds files that longtake does not use."""
    for name in (
        "README.md",
        "demo.mp4",
        "pipeline.py",
        "single_file.safetensors",
        "onnx/model.onnx",
        "safety_checker/config.json",
        "vae/flax_model.msgpack",
        "text_encoder/pytorch_model.bin",
        "text_encoder/generation_config.json",
    ):
        (copy / name).parent.mkdir(exist_ok=True)
        (copy / name).write_text("{}")
    for file in [*copy.glob("*/*model.safetensors")]:
        shutil.copy(file, file.with_suffix(".bf16.safetensors"))
    hub = Hub(copy, tmp_path / "commit")
    monkeypatch.setattr("huggingface_hub.snapshot_download", hub.snapshot_download)
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: hub)
    return hub


CONFIGS = {
    "longtake.yaml",
    "model_index.json",
    "scheduler/scheduler_config.json",
    *(f"{part}/config.json" for part in ("text_encoder", "text_encoder_2", "transformer", "vae")),
}


VAE = "vae/diffusion_pytorch_model.safetensors"


REST = {
    WEIGHTS,
    VAE,
    *(f"text_encoder{end}/model.safetensors" for end in ("", "_2")),
    *(f"tokenizer{end}/{name}.json" for end in ("", "_2") for name in TOKENIZER),
}


def test_only_required_files_are_downloaded(hub: Hub) -> None:
    """Exactly the files that are read."""
    checkpoint = Checkpoint.open("some/one")
    registry.inspect(checkpoint, weights=False)
    assert sorted(hub.fetched) == sorted(CONFIGS)
    registry.inspect(checkpoint, autoencoder_only=True)
    assert sorted(hub.fetched) == sorted({*CONFIGS, VAE})
    registry.inspect(checkpoint)
    assert sorted(hub.fetched) == sorted(CONFIGS | REST)
    registry.load(checkpoint, ALONE, LoadPlan.resident(torch.float32))


def test_variants_and_shards_are_downloaded(hub: Hub, copy: Path) -> None:
    for file in copy.glob("*/*model.safetensors"):
        file.rename(file.with_suffix(".bf16.safetensors"))  # replaces the copies
    (copy / WEIGHTS.replace(".safe", ".bf16.safe")).rename(copy / WEIGHTS)
    in_shards(copy, "diffusion_pytorch_model-{}.fp16.safetensors".format, FP16_INDEX)
    registry.inspect(Checkpoint.open("some/one"))
    weights = {name for name in hub.fetched if "model" in name and "index" not in name}
    assert weights == {
        "vae/diffusion_pytorch_model.bf16.safetensors",
        "text_encoder/model.bf16.safetensors",
        "text_encoder_2/model.bf16.safetensors",
        "transformer/diffusion_pytorch_model-1.fp16.safetensors",
        "transformer/diffusion_pytorch_model-2.fp16.safetensors",
    }


def test_unsupported_model_is_not_downloaded(hub: Hub, copy: Path) -> None:
    edit(copy, "transformer/config.json", num_layers=-1)
    with pytest.raises(ModelError, match="num_layers=-1"):
        registry.inspect(Checkpoint.open("some/one"))
    assert not any("safetensors" in name for name in hub.fetched)


def test_cached_files_work_offline(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    registry.inspect(Checkpoint.open("some/one"))

    def unreachable(*args: Any, **options: Any) -> Any:
        raise ConnectionError("nobody is there")

    monkeypatch.setattr(hub, "model_info", unreachable)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    registry.inspect(Checkpoint.open("some/one"))


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full; make room"),
        (RuntimeError("of an HTTP library"), "check the name, the network and your access"),
    ],
)
def test_failed_downloads(monkeypatch: pytest.MonkeyPatch, error: Exception, text: str) -> None:
    def fails(*args: Any, **options: Any) -> str:
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", fails)
    with pytest.raises(ModelError, match=text) as caught:
        Checkpoint.open("some/one")
    check_text(str(caught.value))
