"""Layouts of Wan's text encoder and image encoder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gguf
import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel, UMT5Config, UMT5EncoderModel

from longtake.errors import ModelError
from longtake.pipelines.loading.checkpoint import Checkpoint
from longtake.pipelines.text_encoders import configs
from longtake.pipelines.text_encoders.tensors import clip_vision_tensors, umt5_tensors
from tests import foreign_wan, tiny_wan
from tests.unit.pipelines.models.wan.layouts.files import (
    LAYOUTS,
    Tensors,
    header,
    layout_of,
    module_tensors,
    on_meta,
)

START = "vision_model."
"""Prefix of the names of CLIP's vision model before transformers 5, which every version reads."""

Writer = tuple[str, Callable[[Tensors], Tensors]]


def llama_cpp(tensors: Tensors) -> dict[str, torch.Tensor]:
    """UMT5EncoderModel's tensors under the names of the gguf package's T5 encoder."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.T5ENCODER, 24)
    found = {names.get_name(name, (".weight",)): each for name, each in tensors.items()}
    return {str(name): each for name, each in found.items()}


def unshared(tensors: Tensors) -> dict[str, torch.Tensor]:
    """A whole UMT5, with the decoder's embedding as the shared one."""
    kept = {name: each for name, each in tensors.items() if name != "shared.weight"}
    embedding = tensors["shared.weight"]
    return {
        **kept,
        "shared.weight": torch.zeros_like(embedding),
        "encoder.embed_tokens.weight": embedding,
        "decoder.final_layer_norm.weight": embedding[0],
        "lm_head.weight": embedding,
    }


TEXT: dict[str, Writer] = {
    "comfy": ("transformers' and ComfyUI's", foreign_wan.comfy_text_encoder),
    "unshared": ("transformers', with the encoder's embedding", unshared),
    "own": ("Wan's own", foreign_wan.own_text_encoder),
    "gguf": ("llama.cpp's", llama_cpp),
}
IMAGE: dict[str, Writer] = {
    "transformers 5": (
        "transformers 5's",
        lambda tensors: {name.removeprefix(START): each for name, each in tensors.items()},
    ),
    "comfy": ("transformers' and ComfyUI's", foreign_wan.comfy_image_encoder),
    "own": ("Wan's own", foreign_wan.own_image_encoder),
}


def text_tensors(model: UMT5EncoderModel) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = model.state_dict()
    return {name: each for name, each in tensors.items() if name != "encoder.embed_tokens.weight"}


def image_tensors(model: CLIPVisionModel) -> dict[str, torch.Tensor]:
    """By the names before transformers 5."""
    tensors = {name.removeprefix(START): each for name, each in model.state_dict().items()}
    kept = {name: each for name, each in tensors.items() if not name.endswith("position_ids")}
    return {START + name: each for name, each in kept.items()}


@pytest.mark.parametrize("writer", TEXT)
def test_released_text_encoder(writer: str) -> None:
    content = Checkpoint.open("wan2.1-t2v-14b", configs_only=True).config("text_encoder")
    expected = configs.Umt5Config.model_validate(content)
    name, write = TEXT[writer]
    file = write(on_meta(dict(umt5_tensors(expected))))
    layout = layout_of(file)
    told = layout.config(header(file))
    assert (layout.name, configs.Umt5Config.model_validate(told)) == (name, expected)
    pieces = {piece.name for parts in layout.names(told).values() for piece in parts}
    assert pieces == {name for name in file if not layout.unused(name)}


@pytest.mark.parametrize("writer", TEXT)
def test_values_of_text_encoder(writer: str) -> None:
    model = tiny_wan.text_encoder()
    expected = text_tensors(model)
    read = module_tensors(TEXT[writer][1](expected), model.config.to_dict())
    assert set(read) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(read[name], tensor), name


def test_gate_of_the_text_encoder() -> None:
    """Wan's T5FeedForward is ``fc2(fc1(x) * gelu(gate(x)))``."""
    model = tiny_wan.text_encoder()
    own = foreign_wan.own_text_encoder(text_tensors(model))
    values = torch.randn(5, 16, generator=torch.Generator().manual_seed(1))
    gate, fc1, fc2 = (own[f"blocks.1.ffn.{name}.weight"] for name in ("gate.0", "fc1", "fc2"))
    activated = torch.nn.functional.gelu(values @ gate.T, approximate="tanh")
    expected = (values @ fc1.T * activated) @ fc2.T
    layer = model.encoder.block[1].layer[1].DenseReluDense
    torch.testing.assert_close(layer(values), expected, rtol=0, atol=1e-5)


def test_a_t5_is_no_umt5() -> None:
    """Only its first layer has an attention bias."""
    tensors = text_tensors(tiny_wan.text_encoder())
    del tensors["encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight"]
    for _, write in (TEXT["comfy"], TEXT["own"], TEXT["gguf"]):
        assert not any(layout.recognizes(header(write(tensors))) for layout in LAYOUTS)


def test_tensors_that_tell_no_text_encoder() -> None:
    tensors = foreign_wan.own_text_encoder(text_tensors(tiny_wan.text_encoder()))
    layout = layout_of(tensors)
    del tensors["blocks.0.ffn.gate.0.weight"]
    with pytest.raises(ModelError, match=r"blocks\.0\.ffn\.gate\.0\.weight"):
        layout.config(header(tensors))


@pytest.mark.parametrize("writer", IMAGE)
def test_released_image_encoder(writer: str) -> None:
    """All but the number of heads, which no shape tells."""
    content = Checkpoint.open("wan2.1-i2v-14b-720p", configs_only=True).config("image_encoder")
    expected = configs.ClipVisionConfig.model_validate(content)
    name, write = IMAGE[writer]
    shapes = {START + own: shape for own, shape in clip_vision_tensors(expected)}
    file = write(on_meta(shapes))
    layout = layout_of(file)
    told = layout.config(header(file))
    assert "num_attention_heads" not in told
    heads = expected.num_attention_heads
    found = configs.ClipVisionConfig.model_validate({"num_attention_heads": heads, **told})
    assert (layout.name, found) == (name, expected)
    pieces = {piece.name for parts in layout.names(told).values() for piece in parts}
    assert pieces == {name for name in file if not layout.unused(name)}


@pytest.mark.parametrize("writer", IMAGE)
def test_values_of_image_encoder(writer: str) -> None:
    model = tiny_wan.image_encoder()
    expected = image_tensors(model)
    read = module_tensors(IMAGE[writer][1](expected), model.config.to_dict())
    assert set(read) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(read[name], tensor), name


def test_attention_of_the_image_encoder() -> None:
    """Wan's SelfAttention splits ``to_qkv(x)`` as ``[3, heads, head size]``."""
    model = tiny_wan.image_encoder()
    own = foreign_wan.own_image_encoder(image_tensors(model))
    start = "visual.transformer.2.attn"
    values = torch.randn(1, 7, 8, generator=torch.Generator().manual_seed(1))
    fused = values @ own[f"{start}.to_qkv.weight"].T + own[f"{start}.to_qkv.bias"]
    q, k, v = fused.view(1, 7, 3, 2, 4).transpose(1, 3).unbind(2)
    attended = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    together = attended.transpose(1, 2).flatten(2)
    expected = together @ own[f"{start}.proj.weight"].T + own[f"{start}.proj.bias"]
    layers: Any = getattr(model, "vision_model", model).encoder.layers
    found = layers[2].self_attn(values)[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_modules_are_those_of_transformers() -> None:
    """Names and shapes of the modules themselves, with the sizes that Wan's encoders have."""
    with torch.device("meta"):
        text = UMT5EncoderModel(UMT5Config(num_layers=1, feed_forward_proj="gated-gelu"))
        image = CLIPVisionModel(CLIPVisionConfig(num_hidden_layers=1))
    for tensors, config in (
        (text_tensors(text), text.config.to_dict()),
        (image_tensors(image), image.config.to_dict()),
    ):
        assert set(module_tensors(tensors, config)) == set(tensors)
