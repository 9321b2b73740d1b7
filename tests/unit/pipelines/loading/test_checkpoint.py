"""Unusable models are refused with a one-line error that names the file and the reason."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from longtake.errors import ModelError
from longtake.pipelines import registry
from longtake.pipelines.loading.checkpoint import Checkpoint
from longtake.pipelines.loading.plan import LoadPlan
from tests.rendering import ALONE

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
FP16_INDEX = "diffusion_pytorch_model.safetensors.index.fp16.json"
TOKENIZER = ("tokenizer", "tokenizer_config")


def edit(folder: Path, name: str, **changes: Any) -> None:
    """Change values of a JSON file."""
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


def fewer_words(folder: Path) -> None:
    """Cut the embedding of the second text encoder to 20 words, of the tokenizer's 28."""
    file = folder / "text_encoder_2/model.safetensors"
    tensors = load_file(file)
    (name,) = (name for name in tensors if name.endswith("token_embedding.weight"))
    save_file({**tensors, name: tensors[name][:20].clone()}, file, {"format": "pt"})
    edit(folder, "text_encoder_2/config.json", vocab_size=20)


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


def with_header(name: str, header: bytes) -> Callable[[Path], None]:
    """Replace a file by a safetensors file that has only a header."""

    def written(folder: Path) -> None:
        (folder / name).write_bytes(len(header).to_bytes(8, "little") + header)

    return written


def replace_file(name: str, make: Callable[[Path], Any]) -> Callable[[Path], None]:
    """Replace a file."""

    def put(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        make(folder / name)

    return put


def huge_header(path: Path) -> None:
    path.write_bytes((2**31).to_bytes(8, "little"))
    os.truncate(path, 2**33)


def in_variants(folder: Path, *variants: str) -> None:
    """Rename all weights as save_pretrained(variant=...) does."""
    for file in [*folder.rglob("*.safetensors")]:
        for variant in variants:
            shutil.copy(file, file.with_suffix(f".{variant}.safetensors"))
        file.unlink()


def in_shards(folder: Path, file_of: Callable[[str], str], index: str) -> dict[str, torch.Tensor]:
    """Save the transformer's weights in two shards and an index, as for large models."""
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names = sorted(tensors)
    shards = {file_of("1"): names[::2], file_of("2"): names[1::2]}
    for file, own in shards.items():
        save_file({name: tensors[name] for name in own}, folder / "transformer" / file)
    mapped = {name: file for file, own in shards.items() for name in own}
    (folder / "transformer" / index).write_text(json.dumps({"weight_map": mapped}))
    return tensors


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no index": (lambda f: (f / "model_index.json").unlink(), "has no model_index.json"),
    "index is not JSON": (
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
    "missing vae folder": (lambda f: shutil.rmtree(f / "vae"), "vae has no weights"),
    "no config": (lambda f: (f / "vae/config.json").unlink(), "vae/config.json is missing"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), "transformer has no weights: expected"),
    "a truncated file": (truncate, "is no whole safetensors file"),
    "an empty file": (lambda f: (f / WEIGHTS).write_bytes(b""), "is no whole safetensors file"),
    "a pickle": (as_pickle, "as a pickle, diffusion_pytorch_model.bin, which can run code"),
    "a pickle named safetensors": (pickle_by_another_name, "is no whole safetensors file"),
    "a missing shard": (lost_shard, "00001-of-2.safetensors is missing"),
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
    "text encoders of another width": (
        lambda f: edit(f, "text_encoder_2/config.json", hidden_size=16),
        "has text encoders of 16 and 16 values, and a transformer for 16 and 8",
    ),
    "fewer positions than CLIP's prompt": (
        lambda f: edit(f, "text_encoder_2/config.json", max_position_embeddings=76),
        "text_encoder_2 of 76 positions: HunyuanVideo needs 2 and 77 or more",
    ),
    "one layer of LLaMA": (
        lambda f: edit(f, "text_encoder/config.json", num_hidden_layers=1),
        "has a text_encoder of 1 layers",
    ),
    "stochastic sampling": (
        lambda f: edit(f, "scheduler/scheduler_config.json", stochastic_sampling=True),
        "scheduler_config.json cannot be used: stochastic_sampling=True must be False",
    ),
    "no tokenizer": (lambda f: shutil.rmtree(f / "tokenizer"), "tokenizer_config.json is missing"),
    "a string for a count": (
        lambda f: edit(f, "transformer/config.json", num_attention_heads="many"),
        "transformer/config.json cannot be used: num_attention_heads='many' must be a whole",
    ),
    "patch size 0": (
        lambda f: edit(f, "transformer/config.json", patch_size=0),
        "patch_size=0 must be at least 1",
    ),
    "patch size as a string": (
        lambda f: edit(f, "transformer/config.json", patch_size="2"),
        "patch_size='2' must be a whole number",
    ),
    "rope axes of another head size": (
        lambda f: edit(f, "transformer/config.json", rope_axes_dim=[4, 6, 8]),
        "even numbers that add up to attention_head_dim",
    ),
    "compression ratio 0": (
        lambda f: edit(f, "vae/config.json", spatial_compression_ratio=0),
        "spatial_compression_ratio=0 must be at least",
    ),
    "null scaling factor": (
        lambda f: edit(f, "vae/config.json", scaling_factor=None),
        "vae/config.json cannot be used: scaling_factor=None must be a number",
    ),
    "shift 0": (
        lambda f: edit(f, "scheduler/scheduler_config.json", shift=0.0),
        "scheduler_config.json cannot be used: shift=0.0 must be at least",
    ),
    "inverted sigmas": (
        lambda f: edit(f, "scheduler/scheduler_config.json", invert_sigmas=True),
        "invert_sigmas=True must be False",
    ),
    "shard names that are no strings": (
        lambda f: (f / f"{WEIGHTS}.index.json").write_text('{"weight_map": {"a": ["b"]}}'),
        "index.json maps no weights",
    ),
    "defaults in another encoding": (
        lambda f: (f / "longtake.yaml").write_bytes(b"height: \xe9"),
        "longtake.yaml is not a file of model defaults",
    ),
    "a wrong default": (
        lambda f: (f / "longtake.yaml").write_text("height: tall"),
        "longtake.yaml is not a file of model defaults: line 1: height='tall' must be a whole "
        "number",
    ),
    "deeply nested JSON": (
        lambda f: (f / "model_index.json").write_text("[" * 100_000),
        "cannot be read as JSON",
    ),
    "a stray file whose header is a list": (
        with_header("stray.safetensors", b"[]"),
        "stray.safetensors cannot be read: it is no whole safetensors file",
    ),
    "a deeply nested header": (
        with_header(WEIGHTS, b'{"a":' * 200_000 + b"1" + b"}" * 200_000),
        "is no whole safetensors file .*recursion limit",
    ),
    "a huge header": (
        replace_file(WEIGHTS, huge_header),
        "its header is longer than 16 MiB",
    ),
    "a header longer than its file": (
        lambda f: (f / WEIGHTS).write_bytes(b"\xff" * 8),
        "its header is longer than the file",
    ),
    "a cyclic link": (
        lambda f: (f / "transformer/up").symlink_to(".."),
        "transformer/up is a link to a folder that it is in",
    ),
    "a configuration that is a link to itself": (
        replace_file("vae/config.json", lambda p: p.symlink_to(p.name)),
        "vae/config.json cannot be read: Too many levels of symbolic links",
    ),
    "a pipe": (lambda f: os.mkfifo(f / "pipe"), "pipe cannot be read: it is a pipe"),
    "a configuration that is a pipe": (
        replace_file("vae/config.json", os.mkfifo),
        "vae/config.json cannot be read: it is a pipe, not a regular file",
    ),
    "weights that are a device": (
        replace_file(WEIGHTS, lambda p: p.symlink_to("/dev/zero")),
        "safetensors cannot be read: it is a device",
    ),
    "a huge configuration": (
        lambda f: os.truncate(f / "vae/config.json", 2**33),
        "vae/config.json cannot be read as JSON: it is larger than 8 MiB",
    ),
    "ten million layers": (
        lambda f: edit(f, "transformer/config.json", num_layers=10_000_000),
        "num_layers=10000000 must be at most 1000",
    ),
    "more layers than weights": (
        lambda f: edit(f, "transformer/config.json", num_layers=1000),
        "transformer lacks transformer_blocks.10.* its config.json are not of the same model",
    ),
    "fewer layers than weights": (
        lambda f: edit(f, "text_encoder_2/config.json", num_hidden_layers=1),
        r"text_encoder_2 holds encoder.layers.1.* \(0 missing, 16 too many\)",
    ),
    "a wider autoencoder than its weights": (
        lambda f: edit(f, "vae/config.json", block_out_channels=[2**20] * 4),
        r"vae holds .* of shape .*, its config.json says \(1048576, ",
    ),
    "a larger vocabulary than its weights": (
        lambda f: edit(f, "text_encoder/config.json", vocab_size=2**20),
        r"embed_tokens.weight of shape \(64, 16\), its config.json says \(1048576, 16\)",
    ),
    "a shard in another folder": (
        replace_file(
            f"{WEIGHTS}.index.json", lambda p: p.write_text('{"weight_map": {"a": "../a"}}')
        ),
        "index.json names ../a, which is no safetensors file beside it",
    ),
    "two variants": (
        lambda f: in_variants(f, "fp16", "bf16"),
        "has weights of the variants bf16 and fp16, and none without a variant: keep the files",
    ),
    "no vocabulary": (
        lambda f: (f / "tokenizer_2/tokenizer.json").unlink(),
        "tokenizer_2 has no vocabulary: expected tokenizer.json or vocab.json with merges.txt",
    ),
    "a damaged vocabulary": (
        lambda f: (f / "tokenizer/tokenizer.json").write_text("{"),
        "tokenizer/tokenizer.json holds no tokenizer",
    ),
    "a tokenizer with code": (
        lambda f: edit(f, "tokenizer/tokenizer_config.json", auto_map={"AutoTokenizer": ["a.B"]}),
        r"tokenizer_config.json names code of its own \(auto_map\), which is not run",
    ),
    "a pipeline with line breaks": (
        lambda f: edit(f, "model_index.json", _class_name="a\nb\x1b[0m"),
        r"is a 'a\\nb",
    ),
    "recursive defaults": (
        lambda f: (f / "longtake.yaml").write_text("height: &a [*a]"),
        "longtake.yaml is not a file of model defaults: line 1: has .a inside &a",
    ),
}

MISFITS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a missing tensor": (
        change_weights(lambda tensors: tensors.pop("proj_out.weight")),  # type: ignore[arg-type]
        r"lacks proj_out.weight \(1 missing, 0 too many\)",
    ),
    "an unexpected tensor": (
        change_weights(lambda tensors: tensors.update(more=torch.zeros(1))),
        r"holds more, which the model does not have \(0 missing, 1 too many\)",
    ),
    "another shape": (
        change_weights(lambda tensors: tensors.update({"proj_out.bias": torch.zeros(3)})),
        r"holds proj_out.bias of shape \(3,\), its config.json says \(16,\)",
    ),
    "integer weights": (
        change_weights(lambda t: t.update({"proj_out.bias": torch.zeros(16, dtype=torch.int8)})),
        "holds proj_out.bias as I8, not one of F64, F32",
    ),
    "a tokenizer without pad_token": (
        lambda f: edit(f, "tokenizer/tokenizer_config.json", pad_token=None),
        "a tokenizer without a pad_token",
    ),
    "a tokenizer of more words than its encoder": (
        fewer_words,
        "/tokenizer_2 holds a tokenizer of 28 tokens, and its encoder has 20",
    ),
    "an impossible architecture": (
        lambda f: edit(f, "vae/config.json", act_fn="nonsense"),
        "describes no AutoencoderKLHunyuanVideo",
    ),
    "a damaged text encoder": (
        lambda f: edit(f, "text_encoder/config.json", intermediate_size=5),
        "/text_encoder cannot be loaded",
    ),
    "a text encoder without a tensor": (
        lambda f: without(f / "text_encoder/model.safetensors", "norm.weight"),
        "text_encoder lacks norm.weight",
    ),
    "a damaged tokenizer": (
        lambda f: (f / "tokenizer/tokenizer.json").write_text("{"),
        "/tokenizer cannot be loaded",
    ),
}


def check_text(text: str) -> None:
    assert text.isprintable()
    assert len(text) < 500


def loaded_transformer(folder: Path) -> dict[str, torch.Tensor]:
    checkpoint = Checkpoint.open(str(folder))
    registry.inspect(checkpoint)
    pipeline = registry.load(checkpoint, ALONE, LoadPlan.resident(torch.float32))
    state: dict[str, torch.Tensor] = pipeline.denoiser.state_dict()
    named = {name.removeprefix("transformer."): tensor for name, tensor in state.items()}
    return {name.replace(".inner", ""): tensor for name, tensor in named.items()}  # of a wrapper


@pytest.mark.parametrize("name", BROKEN)
def test_damage_is_refused_before_loading(copy: Path, name: str) -> None:
    damage, text = BROKEN[name]
    damage(copy)
    with pytest.raises(ModelError, match=text) as caught:
        registry.inspect(Checkpoint.open(str(copy)))
    check_text(str(caught.value))


@pytest.mark.parametrize("name", MISFITS)
def test_damage_found_while_loading(copy: Path, name: str) -> None:
    damage, text = MISFITS[name]
    damage(copy)
    with pytest.raises(ModelError, match=text) as caught:
        registry.load(Checkpoint.open(str(copy)), ALONE, LoadPlan.resident(torch.float32))
    check_text(str(caught.value))


@pytest.mark.parametrize("option", ["--model", "--config"])
def test_refused_before_torch_is_imported(copy: Path, option: str) -> None:
    path = {"--model": copy, "--config": copy / "pipe"}[option]
    os.mkfifo(copy / "pipe")
    program = (
        f"import sys; from longtake.cli import main as cli\n"
        f"code = cli.main(['generate', 'a cat', {option!r}, {str(path)!r}])\n"
        f"sys.exit(100 if 'torch' in sys.modules else code)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "it is a pipe, not a regular file" in done.stderr


@pytest.mark.parametrize("name", ["/no/such/folder", "./nope", "nope", "a/b/c", "trailing/"])
def test_missing_folder(name: str) -> None:
    with pytest.raises(ModelError, match="there is no folder"):
        Checkpoint.open(name)


def test_unreachable_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match="be downloaded from the hub at revision main: check"):
        Checkpoint.open("nobody-at-all/nothing")


@pytest.mark.parametrize(
    ("file", "index"),
    [
        ("{}.safetensors", "diffusion_pytorch_model.safetensors.index.json"),
        ("diffusion_pytorch_model-0000{}-of-00002.fp16.safetensors", FP16_INDEX),
        ("diffusion_pytorch_model.fp16-0000{}-of-00002.safetensors", FP16_INDEX),
    ],
)
def test_sharded_weights(copy: Path, file: str, index: str) -> None:
    tensors = in_shards(copy, file.format, index)
    torch.testing.assert_close(loaded_transformer(copy), tensors, rtol=0, atol=0)


def test_only_variant_is_used(copy: Path) -> None:
    """Other components have weights without a variant."""
    tensors = load_file(copy / WEIGHTS)
    without = Checkpoint.open(str(copy)).fingerprint()
    in_variants(copy / "transformer", "fp16")
    in_variants(copy / "text_encoder", "non_ema")
    in_variants(copy / "text_encoder_2", "fp16")
    torch.testing.assert_close(loaded_transformer(copy), tensors, rtol=0, atol=0)
    assert Checkpoint.open(str(copy)).fingerprint() != without


def test_fingerprint_covers_the_files_read(copy: Path) -> None:
    before = Checkpoint.open(str(copy)).fingerprint()
    shutil.copy(copy / "vae" / Path(WEIGHTS).name, copy / WEIGHTS.replace(".safe", ".bf16.safe"))
    (copy / "notes.json").write_text("{}")
    assert Checkpoint.open(str(copy)).fingerprint() == before
    (copy / "tokenizer/special_tokens_map.json").write_text("{}")
    assert Checkpoint.open(str(copy)).fingerprint() != before


@pytest.mark.parametrize("name", ["demo", "demo-i2v"])
def test_bundled_models_are_consistent(name: str) -> None:
    registry.inspect(Checkpoint.open(name))
