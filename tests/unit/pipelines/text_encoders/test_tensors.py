"""Names and shapes of encoders' tensors against transformers' classes on the meta device."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import CLIPVisionConfig, CLIPVisionModel, UMT5Config, UMT5EncoderModel

from longtake.errors import one_line
from longtake.pipelines.text_encoders import tensor_names
from longtake.pipelines.text_encoders.configs import ClipVisionConfig, Umt5Config
from longtake.pipelines.text_encoders.tensors import clip_vision_tensors, umt5_tensors

UMT5: dict[str, dict[str, Any]] = {
    "xxl": dict(vocab_size=256384, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64),
    "heads wider than the model": dict(
        vocab_size=50, d_model=6, d_kv=4, d_ff=10, num_layers=2, num_heads=3
    ),
    "without a gate": dict(num_layers=1, feed_forward_proj="relu"),
    "defaults": {},
}
CLIP_VISION: dict[str, dict[str, Any]] = {
    "ViT-H/14": dict(
        hidden_size=1280,
        intermediate_size=5120,
        num_hidden_layers=32,
        num_attention_heads=16,
        image_size=224,
        patch_size=14,
    ),
    "patches that do not divide": dict(
        hidden_size=6, num_attention_heads=2, image_size=10, patch_size=3
    ),
    "defaults": {},
}


def shapes_of(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def num_parameters(shapes: dict[str, tuple[int, ...]]) -> int:
    return sum(torch.Size(shape).numel() for shape in shapes.values())


@pytest.mark.parametrize("changes", UMT5.values(), ids=UMT5)
def test_umt5(changes: dict[str, Any]) -> None:
    with torch.device("meta"):
        module = UMT5EncoderModel(UMT5Config(**changes))
    saved = tensor_names.umt5_encoder(shapes_of(module))
    assert dict(umt5_tensors(Umt5Config.model_validate(changes))) == saved


@pytest.mark.parametrize("changes", CLIP_VISION.values(), ids=CLIP_VISION)
def test_clip_vision(changes: dict[str, Any]) -> None:
    with torch.device("meta"):
        module = CLIPVisionModel(CLIPVisionConfig(**changes))
    config = ClipVisionConfig.model_validate(changes)
    assert dict(clip_vision_tensors(config)) == shapes_of(module)
    assert module.embeddings.num_positions == config.num_tokens


def test_sizes_of_released_encoders() -> None:
    text = dict(umt5_tensors(Umt5Config.model_validate(UMT5["xxl"])))
    image = dict(clip_vision_tensors(ClipVisionConfig.model_validate(CLIP_VISION["ViT-H/14"])))
    assert num_parameters(text) == pytest.approx(5.68e9, rel=1e-3)
    assert num_parameters(image) == pytest.approx(0.632e9, rel=2e-3)


def test_the_token_embedding_has_two_names() -> None:
    rest = {"encoder.final_layer_norm.weight": 3, "decoder.block.0": 4, "lm_head.weight": 5}
    expected = {"shared.weight": 1, "encoder.final_layer_norm.weight": 3}
    for embedding in (
        {"shared.weight": 1},
        {"encoder.embed_tokens.weight": 1},
        {"shared.weight": 2, "encoder.embed_tokens.weight": 1},
    ):
        assert tensor_names.umt5_encoder(embedding | rest) == expected


def test_the_head_of_llava_is_left_out() -> None:
    kept = {"language_model.model.norm.weight": 1, "multi_modal_projector.linear_1.bias": 2}
    for head in ("lm_head.weight", "language_model.lm_head.weight", "model.lm_head.weight"):
        assert tensor_names.llava_without_head({head: 3, **kept}) == kept
    prefixed = {f"model.{name}": value for name, value in kept.items()}
    assert tensor_names.llava_without_head(prefixed) == kept


def test_an_untied_embedding_is_that_of_the_encoder() -> None:
    """As in transformers, which does not tie two embeddings of other values."""
    encoder = UMT5EncoderModel(UMT5Config(**UMT5["heads wider than the model"]))
    state = encoder.state_dict()
    state["encoder.embed_tokens.weight"] = state["shared.weight"] + 1
    loaded = UMT5EncoderModel.from_pretrained(None, config=encoder.config, state_dict=dict(state))
    ids = torch.tensor([[3, 1]])
    used = tensor_names.umt5_encoder(state)["shared.weight"]
    torch.testing.assert_close(loaded.encoder.embed_tokens(ids), used[ids], rtol=0, atol=0)


def test_clip_vision_of_older_files() -> None:
    held = {
        "vision_model.post_layernorm.bias": 1,
        "vision_model.embeddings.position_ids": 2,
        "text_model.final_layer_norm.bias": 3,
        "visual_projection.weight": 4,
        "logit_scale": 5,
    }
    assert tensor_names.clip_vision(held) == {"post_layernorm.bias": 1}
    assert tensor_names.clip_vision({"post_layernorm.bias": 1}) == {"post_layernorm.bias": 1}


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (dict(num_layers=0), "num_layers=0 must be at least 1"),
        (dict(d_kv=2**21), "d_kv=2097152 must be at most"),
        (dict(feed_forward_proj="gated-nonsense"), "feed_forward_proj='gated-nonsense' must be"),
        (dict(relative_attention_num_buckets=2), "relative_attention_num_buckets=2 must be"),
        (dict(relative_attention_max_distance=8), "larger than a quarter of"),
        (dict(model_type="t5"), "model_type='t5' must be"),
    ],
)
def test_configurations_that_cannot_be_used(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Umt5Config.model_validate(changes)
    assert text in one_line(caught.value)
