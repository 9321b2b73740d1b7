"""Encoders of streamed layers give the bits of encoders that are whole on the device."""

from __future__ import annotations

import os
import re
import shutil
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPTextModel,
    CLIPVisionModel,
    LlamaModel,
    LlavaForConditionalGeneration,
    LlavaModel,
    UMT5EncoderModel,
)

from longtake.configs.fields.weights import TextPlace
from longtake.errors import EngineError, ModelError
from longtake.pipelines.loading.checkpoint import Checkpoint
from longtake.pipelines.loading.plan import ComponentPlan
from longtake.pipelines.models.hunyuan_video.conditioner.image_text import ImageTextEncoders
from longtake.pipelines.models.hunyuan_video.conditioner.text import TextEncoders
from longtake.pipelines.models.wan.conditioner.conditioner import WanConditioner
from longtake.pipelines.prompt_tokens import PromptTemplate
from longtake.pipelines.streaming import shared_memory
from longtake.pipelines.streaming.stores import FileStore
from longtake.pipelines.text_encoders import tensor_names
from longtake.pipelines.text_encoders.encoder import Encoder
from longtake.pipelines.text_encoders.layers import layers_of
from longtake.pipelines.text_encoders.loading import load_encoder
from tests import tiny

CPU = torch.device("cpu")
STREAMED: tuple[TextPlace, ...] = ("streamed", "disk")

TEMPLATE = PromptTemplate(**tiny.TEMPLATE)
IMAGE_TEMPLATE = PromptTemplate(**tiny.IMAGE_TEMPLATE)
PROMPTS = ("a cat walks on grass", "", "the dog runs slowly , the red cat fast .")

TOKENS = torch.tensor([[5, 9, 9, 0, 21, 5, 13]])
IMAGE_TOKENS = torch.full((1, tiny.IMAGE_TOKENS), tiny.VOCABULARY.index("<image>"))
PICTURE = torch.linspace(-2, 2, 3 * 16 * 16).view(1, 3, 16, 16)

ENCODERS: dict[str, tuple[str, str, Any, Any, dict[str, torch.Tensor]]] = {
    "LLaMA": ("hunyuan-video", "text_encoder", LlamaModel, dict, {"input_ids": TOKENS}),
    "CLIP": ("hunyuan-video", "text_encoder_2", CLIPTextModel, dict, {"input_ids": TOKENS}),
    "LLaVA": (
        "hunyuan-video-i2v",
        "text_encoder",
        LlavaModel,
        tensor_names.llava_without_head,
        {
            "input_ids": torch.cat([TOKENS, IMAGE_TOKENS, TOKENS], dim=1),
            "pixel_values": PICTURE,
        },
    ),
    "UMT5": (
        "wan",
        "text_encoder",
        UMT5EncoderModel,
        tensor_names.umt5_encoder,
        {"input_ids": TOKENS},
    ),
    "CLIP's vision": ("wan", "image_encoder", CLIPVisionModel, dict, {"pixel_values": PICTURE}),
}
"""Model, component, class, renaming of tensors, and input of each encoder."""


@pytest.fixture(scope="module")
def folders(model: str, animators: dict[str, str], wan: Callable[[str], str]) -> dict[str, str]:
    """Tiny models by family."""
    return {
        "hunyuan-video": model,
        "hunyuan-video-i2v": animators["token_replace"],
        "wan": wan("wan21-i2v"),
    }


def load(folder: str | Path, name: str, place: TextPlace, dtype: torch.dtype) -> Encoder:
    _, component, encoder_class, rename, _ = ENCODERS[name]
    checkpoint = Checkpoint.open(str(folder))
    return load_encoder(
        checkpoint, component, encoder_class, ComponentPlan(dtype, place), CPU, rename
    )


@torch.no_grad()
def states(encoder: Encoder, name: str) -> list[torch.Tensor]:
    """All hidden states, and the last one normalized."""
    *_, inputs = ENCODERS[name]
    dtype = encoder.module.dtype
    with encoder.on_device():
        output = encoder.module(
            **{k: v.to(dtype) if v.is_floating_point() else v for k, v in inputs.items()},
            output_hidden_states=True,
        )
    return [*output.hidden_states, output.last_hidden_state]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ENCODERS)
def test_hidden_states_are_those_of_a_resident_encoder(
    folders: dict[str, str], name: str, dtype: torch.dtype
) -> None:
    """Twice: the second time, the weights are brought again."""
    folder = folders[ENCODERS[name][0]]
    resident = load(folder, name, "resident", dtype)
    expected = states(resident, name)
    assert all(each.isfinite().all() and each.std() > 1e-3 for each in expected)
    dtypes = {key: each.dtype for key, each in resident.module.named_parameters()}
    for place in STREAMED:
        encoder = load(folder, name, place, dtype)
        for _ in range(2):
            torch.testing.assert_close(states(encoder, name), expected, rtol=0, atol=0)
        found = {key: each.dtype for key, each in encoder.module.named_parameters()}
        assert found.items() <= dtypes.items()
    kept = {key for key, each in dtypes.items() if each != dtype}
    assert bool(kept) == (name == "UMT5" and dtype == torch.float16)  # transformers' choice


def test_llava_without_its_head_has_the_same_states(folders: dict[str, str]) -> None:
    folder = folders["hunyuan-video-i2v"]
    found = states(load(folder, "LLaVA", "resident", torch.float32), "LLaVA")
    with torch.no_grad():
        whole = LlavaForConditionalGeneration.from_pretrained(Path(folder) / "text_encoder").eval()
        *_, inputs = ENCODERS["LLaVA"]
        expected = whole(**inputs, output_hidden_states=True, logits_to_keep=1).hidden_states
    torch.testing.assert_close(found[:-1], list(expected), rtol=0, atol=0)


def in_older_files(name: str) -> str:
    """Name of a tensor of LLaVA before transformers 4.52."""
    name = re.sub(r"^(model\.)?language_model\.(?!model\.|lm_head)", "language_model.model.", name)
    return re.sub(r"^(model\.)?vision_tower\.(?!vision_model)", "vision_tower.vision_model.", name)


RENAMED: dict[str, tuple[str, Callable[[str], str]]] = {
    "older LLaVA": ("LLaVA", in_older_files),
    "LLaVA with a prefix": (
        "LLaVA",
        lambda name: (
            "model."
            + re.sub(r"(language_model\.)model\.|(vision_tower\.)vision_model\.", r"\1\2", name)
        ),
    ),
    "LLaMA of a language model": ("LLaMA", lambda name: f"model.{name}"),
    "older CLIP": ("CLIP", lambda name: f"text_model.{name.removeprefix('text_model.')}"),
    "older vision encoder": (
        "CLIP's vision",
        lambda name: f"vision_model.{name.removeprefix('vision_model.')}",
    ),
    "UMT5's own embedding": (
        "UMT5",
        lambda name: name.replace("shared.weight", "encoder.embed_tokens.weight"),
    ),
}
"""Encoder, and the names of its tensors in files of other versions of transformers."""


@pytest.mark.parametrize("case", RENAMED)
def test_tensors_are_found_as_transformers_finds_them(
    folders: dict[str, str], tmp_path: Path, case: str
) -> None:
    name, rename = RENAMED[case]
    family, component, *_ = ENCODERS[name]
    shutil.copytree(folders[family], tmp_path / "copy")
    file = tmp_path / "copy" / component / "model.safetensors"
    tensors = load_file(file)
    save_file({rename(each): tensors[each] for each in tensors}, file, {"format": "pt"})
    assert load_file(file).keys() != tensors.keys()
    expected = states(load(folders[family], name, "resident", torch.bfloat16), name)
    for place in get_args(TextPlace):
        found = states(load(tmp_path / "copy", name, place, torch.bfloat16), name)
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


# Conditioners.


def hunyuan_video(checkpoint: Checkpoint, plan: ComponentPlan) -> Iterator[dict[str, torch.Tensor]]:
    encoders = TextEncoders(checkpoint, CPU, plan)
    yield from (encoders.encode(prompt, TEMPLATE, tiny.MAX_TOKENS) for prompt in PROMPTS)


def image_to_video(
    checkpoint: Checkpoint, plan: ComponentPlan
) -> Iterator[dict[str, torch.Tensor]]:
    encoders = ImageTextEncoders(checkpoint, CPU, plan)
    for prompt in PROMPTS:
        yield encoders.encode_with_picture(prompt, pixels(), IMAGE_TEMPLATE, tiny.MAX_TOKENS, 2)


def wan(checkpoint: Checkpoint, plan: ComponentPlan) -> Iterator[dict[str, torch.Tensor]]:
    encoders = WanConditioner(checkpoint, CPU, plan, image_keys=True)
    yield encoders.encode_images([pixels()])
    yield from (encoders.encode(prompt, 512) for prompt in PROMPTS)


def pixels() -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("family", "encode"),
    [("hunyuan-video", hunyuan_video), ("hunyuan-video-i2v", image_to_video), ("wan", wan)],
)
@torch.no_grad()
def test_conditions_are_those_of_resident_encoders(
    folders: dict[str, str], family: str, encode: Callable[..., Any], dtype: torch.dtype
) -> None:
    checkpoint = Checkpoint.open(folders[family])
    expected = list(encode(checkpoint, ComponentPlan(dtype)))
    for place in STREAMED:
        found = list(encode(checkpoint, ComponentPlan(dtype, place)))
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
        assert {each.dtype for every in found for each in every.values()} == {dtype}


# What is held.


def held_bytes(encoder: Encoder) -> int:
    """Bytes of the memory behind an encoder's parameters and buffers."""
    tensors = [*encoder.module.parameters(), *encoder.module.buffers()]
    storages = {each.untyped_storage()._cdata: each.untyped_storage() for each in tensors}
    return sum(storage.nbytes() for storage in storages.values())


@pytest.mark.parametrize("place", STREAMED)
@pytest.mark.parametrize("name", ENCODERS)
def test_layers_are_held_only_while_they_compute(
    folders: dict[str, str], name: str, place: TextPlace
) -> None:
    folder = folders[ENCODERS[name][0]]
    encoder = load(folder, name, place, torch.bfloat16)
    layers = list(layers_of(encoder.module))
    parameters = [each for layer in layers for each in layer.parameters()]
    of_layers = sum(each.nbytes for each in parameters)
    whole = sum(
        each.nbytes for each in load(folder, name, "resident", torch.bfloat16).module.parameters()
    )
    assert of_layers > whole / 4
    outside = held_bytes(encoder)
    assert outside < whole - 0.9 * of_layers
    inside: list[int] = []
    for layer in layers:
        layer.register_forward_hook(lambda *_: inside.append(held_bytes(encoder)))
    states(encoder, name)
    assert held_bytes(encoder) == outside
    assert all(each.isnan().all() for each in parameters)


def test_the_next_layer_is_read_while_one_computes(
    folders: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = defaultdict[int, threading.Event](threading.Event)
    read = FileStore.read

    def noted(store: FileStore, number: int, target: torch.Tensor) -> None:
        begun[number].set()
        read(store, number, target)

    monkeypatch.setattr(FileStore, "read", noted)
    encoder = load(folders["hunyuan-video"], "LLaMA", "disk", torch.float32)
    *layers, _ = layers_of(encoder.module)
    in_time: list[bool] = []
    for number, layer in enumerate(layers):
        layer.register_forward_pre_hook(
            lambda *_, after=number + 1: in_time.append(begun[after].wait(20))
        )
    states(encoder, "LLaMA")
    assert in_time == [True, True]


# Faults.


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


@pytest.mark.parametrize("place", get_args(TextPlace))
def test_a_file_that_is_cut_while_the_encoder_is_in_use(
    folders: dict[str, str], tmp_path: Path, place: TextPlace
) -> None:
    """Only an encoder on disk reads it again."""
    shutil.copytree(folders["wan"], tmp_path / "copy")
    encoder = load(tmp_path / "copy", "UMT5", place, torch.float32)
    expected = states(encoder, "UMT5")
    (file,) = (tmp_path / "copy" / "text_encoder").glob("*.safetensors")
    truncate(file)
    if place != "disk":
        torch.testing.assert_close(states(encoder, "UMT5"), expected, rtol=0, atol=0)
        return
    for _ in range(2):
        with pytest.raises(EngineError, match=r"cannot be read from .*text_encoder: ") as caught:
            states(encoder, "UMT5")
        assert str(caught.value).isprintable()
    assert all(each.isnan().all() for each in next(layers_of(encoder.module)).parameters())


def test_a_file_that_is_removed_is_read_to_the_end(folders: dict[str, str], tmp_path: Path) -> None:
    """It is open, so that its content stays."""
    shutil.copytree(folders["wan"], tmp_path / "copy")
    encoder = load(tmp_path / "copy", "UMT5", "disk", torch.float32)
    expected = states(encoder, "UMT5")
    shutil.rmtree(tmp_path / "copy")
    torch.testing.assert_close(states(encoder, "UMT5"), expected, rtol=0, atol=0)


def test_a_host_with_too_little_memory(
    folders: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_memory, "free_bytes", lambda device: 2**29)
    with pytest.raises(ModelError, match=r"try --text-weights disk, which reads each") as caught:
        load(folders["wan"], "UMT5", "streamed", torch.float32)
    assert str(caught.value).isprintable()


def test_an_error_of_a_layer_frees_what_was_brought(folders: dict[str, str]) -> None:
    encoder = load(folders["hunyuan-video"], "LLaMA", "disk", torch.float32)
    outside, expected = held_bytes(encoder), states(encoder, "LLaMA")
    layer = list(layers_of(encoder.module))[1]
    fault = layer.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        states(encoder, "LLaMA")
    assert held_bytes(encoder) == outside
    fault.remove()
    torch.testing.assert_close(states(encoder, "LLaMA"), expected, rtol=0, atol=0)


def test_quantized_tensors_are_refused(folders: dict[str, str], tmp_path: Path) -> None:
    shutil.copytree(folders["hunyuan-video"], tmp_path / "copy")
    (file,) = (tmp_path / "copy" / "text_encoder").glob("*.safetensors")
    tensors = load_file(file)
    key = "layers.1.mlp.down_proj.weight"
    save_file({**tensors, key: tensors[key].to(torch.float8_e4m3fn)}, file, {"format": "pt"})
    for place in get_args(TextPlace):
        with pytest.raises(ModelError, match=rf"{key} as F8_E4M3, .* are not supported"):
            load(tmp_path / "copy", "LLaMA", place, torch.bfloat16)
