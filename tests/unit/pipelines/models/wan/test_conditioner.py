"""Keys of prompts and pictures match those of diffusers' pipelines, in float32."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from longtake.errors import ModelError
from longtake.pipelines.codec.picture import Pixels
from longtake.pipelines.loading.checkpoint import Checkpoint
from longtake.pipelines.loading.plan import ComponentPlan
from longtake.pipelines.models.wan.conditioner.conditioner import WanConditioner
from longtake.pipelines.models.wan.conditioner.prompt_cleaning import clean_prompt
from longtake.pipelines.prompt_tokens import PromptTokens
from tests import tiny_wan

MAX_TOKENS = tiny_wan.TEXT_TOKENS
CPU = torch.device("cpu")

PROMPTS = {
    "short": "a cat runs on grass",
    "empty": "",
    "only spaces": " \t\n ",
    "several spaces": "  a  cat\n\nruns\t on   grass ",
    "HTML entities": "cat &amp; dog &lt;fast&gt; &#233; &quot;red&quot;",
    "entities of entities": "cat &amp;amp; dog &amp;lt;red&amp;gt;",
    "tags": "<b>cat</b> &amp; dog",
    "accents and other scripts": "el niño à la mer, 一只猫 Ωmega",
    "damaged Unicode": "the dogâ€™s red niÃ±o",
    "curly quotes": "\u201ca cat\u201d, the dog\u2019s",
    "full-width letters": "ｃａｔ　ｄｏｇ",
    "control characters": "cat\x00 \x1bdog\u200b\ufeff",
    "special tokens": "cat </s> dog <pad> <unk> red",
    "one token less than fits": "cat " * (MAX_TOKENS - 2),
    "as many tokens as fit": "cat " * (MAX_TOKENS - 1),
    "one token too many": "cat " * MAX_TOKENS,
    "far too long": "a red dog walks slowly, " * 300,
}


@cache
def reference(folder: str) -> Any:
    return tiny_wan.reference(folder)


def conditioner(folder: str | Path, dtype: torch.dtype = torch.float32) -> WanConditioner:
    checkpoint = Checkpoint.open(str(folder))
    image_keys = (Path(folder) / "image_encoder").exists()
    return WanConditioner(checkpoint, CPU, ComponentPlan(dtype), image_keys=image_keys)


@pytest.fixture(scope="module")
def text_to_video(wan: Callable[[str], str]) -> WanConditioner:
    return conditioner(wan("wan21-t2v"))


@pytest.fixture(scope="module")
def image_to_video(wan: Callable[[str], str]) -> WanConditioner:
    return conditioner(wan("wan21-i2v"))


def expected_text(folder: str, prompt: str, max_tokens: int) -> torch.Tensor:
    with torch.no_grad():  # as diffusers' __call__; gradients take another attention kernel
        text, _ = reference(folder).encode_prompt(
            prompt, do_classifier_free_guidance=False, max_sequence_length=max_tokens
        )
    assert isinstance(text, torch.Tensor)
    return text


@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS)
def test_text_matches_diffusers(
    wan: Callable[[str], str], text_to_video: WanConditioner, prompt: str
) -> None:
    found = text_to_video.encode(prompt, MAX_TOKENS)
    expected = expected_text(wan("wan21-t2v"), prompt, MAX_TOKENS)
    assert found.keys() == {"text"}
    torch.testing.assert_close(found["text"], expected, rtol=0, atol=1e-5)
    assert expected.std() > 0.01


@pytest.mark.parametrize("max_tokens", [1, 2, 20])
def test_text_of_another_length(
    wan: Callable[[str], str], image_to_video: WanConditioner, max_tokens: int
) -> None:
    found = image_to_video.encode(PROMPTS["short"], max_tokens)["text"]
    expected = expected_text(wan("wan21-i2v"), PROMPTS["short"], max_tokens)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_padding_is_zeros_and_tokens_are_not(text_to_video: WanConditioner) -> None:
    text = text_to_video.encode("cat dog", MAX_TOKENS)["text"]
    assert text.shape == (1, MAX_TOKENS, 16)
    assert text[0].ne(0).any(dim=1).tolist() == [True] * 3 + [False] * (MAX_TOKENS - 3)


def test_text_in_bfloat16(wan: Callable[[str], str], text_to_video: WanConditioner) -> None:
    rounded = conditioner(wan("wan21-t2v"), torch.bfloat16).encode("a red dog", MAX_TOKENS)["text"]
    assert rounded.dtype == torch.bfloat16
    exact = text_to_video.encode("a red dog", MAX_TOKENS)["text"]
    torch.testing.assert_close(rounded.float(), exact, rtol=0, atol=0.05)


@pytest.mark.parametrize(
    ("prompt", "used", "total"),
    [
        ("", 0, 0),
        ("cat dog", 2, 2),
        ("  cat \n dog ", 2, 2),
        ("cat &amp;&amp; dog", 5, 5),  # the mark of a space before &, and each &
        ("cat " * (MAX_TOKENS - 1), MAX_TOKENS - 1, MAX_TOKENS - 1),
        ("cat " * 600, MAX_TOKENS - 1, 600),
    ],
)
def test_tokens_of_a_prompt(
    text_to_video: WanConditioner, prompt: str, used: int, total: int
) -> None:
    counted = text_to_video.prompt_tokens(prompt, MAX_TOKENS)
    assert counted == PromptTokens(used=used, total=total)


@pytest.mark.parametrize(
    "text", ["a&#28;b", "<i>&amp;#160;</i>", "x\u2028y", "x\u00a0\u3000y", "&am"]
)
def test_cleaning_is_that_of_diffusers(text: str) -> None:
    from diffusers.pipelines.wan.pipeline_wan import prompt_clean

    assert clean_prompt(text) == prompt_clean(text)


def picture(height: int, width: int, seed: int = 5) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


@pytest.mark.parametrize(
    "size", [(32, 48), (16, 16), (7, 5), (1, 1), (100, 300), (300, 20), (2, 400)], ids=str
)
def test_keys_of_a_picture(
    wan: Callable[[str], str], image_to_video: WanConditioner, size: tuple[int, int]
) -> None:
    pixels = picture(*size)
    with torch.no_grad():
        expected = reference(wan("wan21-i2v")).encode_image(Image.fromarray(pixels))
    found = image_to_video.encode_images([pixels])
    assert found.keys() == {"image"}
    assert found["image"].shape == (1, tiny_wan.IMAGE_TOKENS, tiny_wan.IMAGE_WIDTH)
    torch.testing.assert_close(found["image"], expected, rtol=0, atol=1e-5)


def test_keys_of_two_pictures(wan: Callable[[str], str]) -> None:
    """The transformer takes the keys in the order of the pictures."""
    folder, pictures = wan("wan21-flf2v"), [picture(32, 48), picture(50, 20, seed=6)]
    pipeline = reference(folder)
    with torch.no_grad():
        encoded = pipeline.encode_image([Image.fromarray(each) for each in pictures])
        embed = pipeline.transformer.condition_embedder.image_embedder
        found = conditioner(folder).encode_images(pictures)["image"]
        assert found.shape == (1, 2 * tiny_wan.IMAGE_TOKENS, tiny_wan.IMAGE_WIDTH)
        torch.testing.assert_close(found, torch.cat([*encoded])[None], rtol=0, atol=1e-5)
        positions = embed.pos_embed
        expected = embed.norm2(embed.ff(embed.norm1(found + positions)))
        torch.testing.assert_close(embed(encoded), expected, rtol=0, atol=1e-5)
    assert (encoded[0] - encoded[1]).abs().max() > 0.1


@pytest.mark.parametrize("kind", ["wan21-t2v", "wan22-i2v", "wan22-ti2v"])
def test_models_without_image_keys(wan: Callable[[str], str], kind: str) -> None:
    loaded = conditioner(wan(kind))
    assert loaded.encode_images([picture(32, 48)]) == {}
    assert loaded.encode("a cat", MAX_TOKENS)["text"].shape == (1, MAX_TOKENS, 16)


def rename(folder: Path, component: str, change: Callable[[str], str]) -> None:
    file = folder / component / "model.safetensors"
    tensors = {change(name): tensor for name, tensor in load_file(file).items()}
    save_file(tensors, file, {"format": "pt"})


def test_weights_of_older_files(
    wan: Callable[[str], str], image_to_video: WanConditioner, tmp_path: Path
) -> None:
    shutil.copytree(wan("wan21-i2v"), tmp_path / "older")
    rename(tmp_path / "older", "image_encoder", "vision_model.{}".format)
    embedding = "encoder.embed_tokens.weight"
    rename(tmp_path / "older", "text_encoder", lambda n: embedding if n == "shared.weight" else n)
    older = conditioner(tmp_path / "older")
    for found, expected in (
        (older.encode("a cat", 20), image_to_video.encode("a cat", 20)),
        (older.encode_images([picture(9, 9)]), image_to_video.encode_images([picture(9, 9)])),
    ):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def edit(file: str, **changes: Any) -> Callable[[Path], object]:
    def apply(folder: Path) -> None:
        path = folder / file
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return apply


def without(component: str, name: str) -> Callable[[Path], object]:
    def apply(folder: Path) -> None:
        file = folder / component / "model.safetensors"
        tensors = load_file(file)
        del tensors[name]
        save_file(tensors, file, {"format": "pt"})

    return apply


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no text encoder": (lambda f: shutil.rmtree(f / "text_encoder"), "text_encoder/config.json is"),
    "a text encoder without weights": (
        lambda f: (f / "text_encoder/model.safetensors").unlink(),
        "text_encoder has no weights: expected",
    ),
    "a text encoder of another width": (
        edit("text_encoder/config.json", d_model=18),
        "/text_encoder cannot be loaded: .*; download or save the model again",
    ),
    "a text encoder without a tensor": (
        without("text_encoder", "encoder.final_layer_norm.weight"),
        "text_encoder lacks encoder.final_layer_norm.weight: its weights and its config.json",
    ),
    "a text encoder without embedding": (
        without("text_encoder", "shared.weight"),
        "text_encoder lacks (shared|encoder.embed_tokens).weight",
    ),
    "no tokenizer": (lambda f: shutil.rmtree(f / "tokenizer"), "/tokenizer cannot be loaded"),
    "a damaged tokenizer": (
        lambda f: (f / "tokenizer/tokenizer.json").write_text("{"),
        "/tokenizer cannot be loaded",
    ),
    "a tokenizer without pad_token": (
        edit("tokenizer/tokenizer_config.json", pad_token=None),
        "tokenizer holds a tokenizer without a pad_token: set one in its tokenizer_config.json",
    ),
    "an image encoder without weights": (
        lambda f: (f / "image_encoder/model.safetensors").unlink(),
        "image_encoder has no weights",
    ),
    "an image encoder without a tensor": (
        without("image_encoder", "post_layernorm.bias"),
        "image_encoder lacks post_layernorm.bias",
    ),
    "no image processor": (
        lambda f: shutil.rmtree(f / "image_processor"),
        "/image_processor cannot be loaded",
    ),
    "an image processor of other pictures": (
        edit("image_processor/preprocessor_config.json", crop_size={"height": 12, "width": 16}),
        "makes pictures of 12 x 16 pixels, and their encoder takes 16 x 16: they are not of the",
    ),
    "an image processor without a size": (
        edit("image_processor/preprocessor_config.json", size={"depth": 3}),
        "/image_processor cannot be loaded",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_named(wan: Callable[[str], str], tmp_path: Path, name: str) -> None:
    damage, text = FAULTS[name]
    folder = tmp_path / "copy"
    shutil.copytree(wan("wan21-i2v"), folder)
    damage(folder)
    with pytest.raises(ModelError, match=text) as caught:
        checkpoint = Checkpoint.open(str(folder))
        WanConditioner(checkpoint, CPU, ComponentPlan(torch.float32), image_keys=True)
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 500
