"""Models that cannot be loaded are refused with one line that says which file, and why."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from longtake.errors import ModelError
from longtake.pipelines import registry
from longtake.pipelines.checkpoint import Checkpoint
from tests.rendering import ALONE

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


def edit(folder: Path, name: str, **changes: Any) -> None:
    """Change some values of a JSON file."""
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def truncate(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: len(data) // 2])


def as_pickle(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    torch.save({}, folder / "transformer/diffusion_pytorch_model.bin")


def pickle_by_another_name(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(pickle.dumps({"weights": list(range(1000))}))


def lost_shard(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    index = {"weight_map": {"proj_out.weight": "diffusion_pytorch_model-00001-of-2.safetensors"}}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))


def change_weights(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    def changed(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        change(tensors)
        save_file(tensors, folder / WEIGHTS)

    return changed


def without(file: Path, name: str) -> None:
    tensors = load_file(file)
    del tensors[name]
    save_file(tensors, file, {"format": "pt"})


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no index": (lambda f: (f / "model_index.json").unlink(), "has no model_index.json"),
    "index is no JSON": (
        lambda f: (f / "model_index.json").write_text("{"),
        "cannot be read as JSON",
    ),
    "index is a list": (lambda f: (f / "model_index.json").write_text("[]"), "no JSON object"),
    "another pipeline": (
        lambda f: edit(f, "model_index.json", _class_name="FluxPipeline"),
        "is a FluxPipeline: longtake renders with HunyuanVideoPipeline",
    ),
    "another transformer": (
        lambda f: edit(f, "model_index.json", transformer=["diffusers", "WanTransformer3DModel"]),
        "has a transformer of class WanTransformer3DModel",
    ),
    "no vae named": (lambda f: edit(f, "model_index.json", vae=None), "names no vae"),
    "no vae there": (lambda f: shutil.rmtree(f / "vae"), "vae has no weights"),
    "no config": (lambda f: (f / "vae/config.json").unlink(), "vae/config.json is missing"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), "transformer has no weights: expected"),
    "a truncated file": (truncate, "is no whole safetensors file"),
    "an empty file": (lambda f: (f / WEIGHTS).write_bytes(b""), "is no whole safetensors file"),
    "a pickle": (as_pickle, "as a pickle, diffusion_pytorch_model.bin, which can run code"),
    "a pickle in disguise": (pickle_by_another_name, "is no whole safetensors file"),
    "a lost shard": (lost_shard, "00001-of-2.safetensors is missing"),
    "quantized": (
        lambda f: edit(f, "transformer/config.json", quantization_config={}),
        "transformer/config.json cannot be used: quantization_config={} must be left out",
    ),
    "an image model": (
        lambda f: edit(f, "transformer/config.json", image_condition_type="token_replace"),
        "is conditioned on an image",
    ),
    "other channels": (
        lambda f: edit(f, "vae/config.json", latent_channels=16),
        "a transformer of 4 channels and a vae of 16",
    ),
    "noise at each step": (
        lambda f: edit(f, "scheduler/scheduler_config.json", stochastic_sampling=True),
        "scheduler_config.json cannot be used: stochastic_sampling=True must be False",
    ),
    "no tokenizer": (lambda f: shutil.rmtree(f / "tokenizer"), "tokenizer_config.json is missing"),
    "sizes are words": (
        lambda f: edit(f, "transformer/config.json", num_attention_heads="many"),
        "transformer/config.json cannot be used: num_attention_heads='many' must be a whole",
    ),
    "a patch of nothing": (
        lambda f: edit(f, "transformer/config.json", patch_size=0),
        "patch_size=0 must be at least 1",
    ),
    "a patch in quotes": (
        lambda f: edit(f, "transformer/config.json", patch_size="2"),
        "patch_size='2' must be a whole number",
    ),
    "a rope of another head": (
        lambda f: edit(f, "transformer/config.json", rope_axes_dim=[4, 6, 8]),
        "even numbers that add up to attention_head_dim",
    ),
    "no compression": (
        lambda f: edit(f, "vae/config.json", spatial_compression_ratio=0),
        "spatial_compression_ratio=0 must be at least",
    ),
    "no scale": (
        lambda f: edit(f, "vae/config.json", scaling_factor=None),
        "vae/config.json cannot be used: scaling_factor=None must be a number",
    ),
    "a shift of nothing": (
        lambda f: edit(f, "scheduler/scheduler_config.json", shift=0.0),
        "scheduler_config.json cannot be used: shift=0.0 must be at least",
    ),
    "a schedule upside down": (
        lambda f: edit(f, "scheduler/scheduler_config.json", invert_sigmas=True),
        "invert_sigmas=True must be False",
    ),
    "shards that are no names": (
        lambda f: (f / f"{WEIGHTS}.index.json").write_text('{"weight_map": {"a": ["b"]}}'),
        "index.json maps no weights",
    ),
    "defaults in another encoding": (
        lambda f: (f / "longtake.yaml").write_bytes(b"height: \xe9"),
        "longtake.yaml holds no defaults of a model",
    ),
    "a wrong default": (
        lambda f: (f / "longtake.yaml").write_text("height: tall"),
        "longtake.yaml holds no defaults of a model: line 1: height='tall' must be a whole number",
    ),
    "nested without end": (
        lambda f: (f / "model_index.json").write_text("[" * 100_000),
        "cannot be read as JSON",
    ),
}

MISFITS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a tensor is missing": (
        change_weights(lambda tensors: tensors.pop("proj_out.weight")),  # type: ignore[arg-type]
        r"lacks proj_out.weight \(1 missing, 0 too many\)",
    ),
    "a tensor too many": (
        change_weights(lambda tensors: tensors.update(more=torch.zeros(1))),
        r"holds more, which the model has not \(0 missing, 1 too many\)",
    ),
    "another shape": (
        change_weights(lambda tensors: tensors.update({"proj_out.bias": torch.zeros(3)})),
        r"holds proj_out.bias of shape \(3,\), its config.json says \(16,\)",
    ),
    "whole numbers": (
        change_weights(lambda t: t.update({"proj_out.bias": torch.zeros(16, dtype=torch.int8)})),
        "holds proj_out.bias as I8, not one of F64, F32",
    ),
    "a tokenizer that cannot pad": (
        lambda f: edit(f, "tokenizer/tokenizer_config.json", pad_token=None),
        "a tokenizer without a pad_token",
    ),
    "an impossible architecture": (
        lambda f: edit(f, "transformer/config.json", qk_norm="nonsense"),
        "describes no HunyuanVideoTransformer3DModel",
    ),
    "a damaged text encoder": (
        lambda f: edit(f, "text_encoder/config.json", hidden_size=12),
        "text encoders that cannot be loaded",
    ),
    "a text encoder without a tensor": (
        lambda f: without(f / "text_encoder/model.safetensors", "norm.weight"),
        "text_encoder lacks norm.weight",
    ),
    "a damaged tokenizer": (
        lambda f: (f / "tokenizer/tokenizer.json").write_text("{"),
        "text encoders that cannot be loaded",
    ),
}


@pytest.fixture
def copy(model: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model, tmp_path / "model"))


def check_text(text: str) -> None:
    assert "\n" not in text
    assert len(text) < 500


@pytest.mark.parametrize("name", BROKEN)
def test_refused_before_anything_is_loaded(copy: Path, name: str) -> None:
    damage, text = BROKEN[name]
    damage(copy)
    with pytest.raises(ModelError, match=text) as caught:
        registry.inspect(Checkpoint.open(str(copy)))
    check_text(str(caught.value))


@pytest.mark.parametrize("name", MISFITS)
def test_refused_while_loading(copy: Path, name: str) -> None:
    damage, text = MISFITS[name]
    damage(copy)
    with pytest.raises(ModelError, match=text) as caught:
        registry.load(Checkpoint.open(str(copy)), ALONE, dtype=torch.float32)
    check_text(str(caught.value))


@pytest.mark.parametrize("name", ["/no/such/folder", "./nope", "nope", "a/b/c", "trailing/"])
def test_a_folder_that_is_not_there(name: str) -> None:
    with pytest.raises(ModelError, match="there is no folder"):
        Checkpoint.open(name)


def test_a_hub_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match="cannot be had from the hub at revision main: check"):
        Checkpoint.open("nobody-at-all/nothing")


def test_weights_in_shards(copy: Path) -> None:
    """As large models are stored: several files and an index."""
    tensors = load_file(copy / WEIGHTS)
    (copy / WEIGHTS).unlink()
    names = sorted(tensors)
    halves = {"a": names[::2], "b": names[1::2]}
    index = {name: f"{half}.safetensors" for half, own in halves.items() for name in own}
    for half, own in halves.items():
        save_file({name: tensors[name] for name in own}, copy / f"transformer/{half}.safetensors")
    (copy / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": index}))
    pipeline = registry.load(Checkpoint.open(str(copy)), ALONE, dtype=torch.float32)
    loaded = pipeline.denoiser.state_dict()
    for name, tensor in tensors.items():
        torch.testing.assert_close(loaded[f"transformer.{name}"], tensor, rtol=0, atol=0)
