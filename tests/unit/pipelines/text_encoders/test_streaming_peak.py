"""Memory on the device while the released encoders' layers are streamed, on the meta device."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaModel,
    LlavaConfig,
    LlavaModel,
    UMT5Config,
    UMT5EncoderModel,
)

from longtake.pipelines import registry
from longtake.pipelines.loading.checkpoint import Checkpoint
from longtake.pipelines.operations import LiveBytes, observing
from longtake.pipelines.streaming.layout import BlockLayout
from longtake.pipelines.streaming.streamer import BlockStreamer
from longtake.pipelines.text_encoders.encoder import StreamedEncoder
from longtake.pipelines.text_encoders.layers import (
    layers_of,
    num_parameters,
    streaming_parameters,
    token_embeddings,
)

META = torch.device("meta")
LIMIT_BYTES = 4 * 2**30


@dataclass(frozen=True)
class NoValues:
    """A store of layers that have no values."""

    layouts: Sequence[BlockLayout]

    def pinned(self, number: int) -> None:
        """Nothing is pinned."""

    def read(self, number: int, target: torch.Tensor) -> None:
        """There is nothing to read."""


def llama(module: Any) -> None:
    """The template's tokens and the longest prompt."""
    module(inputs_embeds=states(95 + 256, 4096), output_hidden_states=True)


def llava(module: Any) -> None:
    """The same, and a picture of 24 x 24 patches."""
    pixels = torch.empty(1, 3, 336, 336, dtype=torch.bfloat16, device=META)
    module.get_image_features(pixels)
    inputs = states(103 + 576 + 256, 4096)
    module.language_model(inputs_embeds=inputs, output_hidden_states=True)


def umt5(module: Any) -> None:
    """The longest prompt."""
    module(inputs_embeds=states(512, 4096))


def clip(module: Any) -> None:
    """The longest prompt."""
    module(tokens(77))


def clip_vision(module: Any) -> None:
    """The first and the last picture."""
    pixels = torch.empty(2, 3, 224, 224, dtype=torch.bfloat16, device=META)
    module(pixels, output_hidden_states=True)


def states(num_tokens: int, width: int) -> torch.Tensor:
    return torch.empty(1, num_tokens, width, dtype=torch.bfloat16, device=META)


def tokens(num_tokens: int) -> torch.Tensor:
    return torch.empty(1, num_tokens, dtype=torch.long, device=META)


ENCODERS: dict[str, tuple[str, str, Any, Any, Callable[[Any], None], float]] = {
    "LLaMA 8B": ("hunyuan-video", "text_encoder", LlamaModel, LlamaConfig, llama, 1.0),
    "LLaVA-LLaMA 8B": ("hunyuan-video-i2v", "text_encoder", LlavaModel, LlavaConfig, llava, 1.49),
    "CLIP ViT-L": ("hunyuan-video", "text_encoder_2", CLIPTextModel, CLIPTextConfig, clip, 0.029),
    "UMT5-XXL": ("wan2.1-t2v-14b", "text_encoder", UMT5EncoderModel, UMT5Config, umt5, 0.96),
    "CLIP ViT-H": (
        "wan2.1-flf2v-14b-720p",
        "image_encoder",
        CLIPVisionModel,
        CLIPVisionConfig,
        clip_vision,
        0.147,
    ),
}
"""Model, component, class, its configuration, its longest input, and the GiB that are expected."""


def on_meta(name: str) -> Any:
    """The encoder in bfloat16, without values."""
    preset, component, encoder_class, config_class, _, _ = ENCODERS[name]
    config = Checkpoint.open(preset, configs_only=True).config(component)
    with META:
        encoder = encoder_class(config_class.from_dict(config))
    return encoder.eval().requires_grad_(False).to(torch.bfloat16)


def measured_peak(encoder: Any, call: Callable[[Any], None]) -> int:
    """Bytes on the device at most while the encoder is called."""
    layers = list(layers_of(encoder))
    tables = {id(getattr(parent, name).weight) for parent, name in token_embeddings(encoder)}
    inside = {id(each) for layer in layers for each in layer.parameters()}
    tensors = {id(each): each.nbytes for each in (*encoder.parameters(), *encoder.buffers())}
    outside = sum(size for key, size in tensors.items() if key not in inside | tables)
    streamer, memory = BlockStreamer(META), LiveBytes()
    streamer.add(layers, NoValues([BlockLayout(layer.state_dict()) for layer in layers]))
    streamed = StreamedEncoder(encoder, layers, streamer, META)
    with observing(memory), streamed.on_device():
        call(encoder)
    peak: int = outside + memory.peak
    return peak


@pytest.mark.parametrize("name", ENCODERS)
def test_peak_of_released_encoders(name: str) -> None:
    *_, call, expected_gib = ENCODERS[name]
    encoder = on_meta(name)
    weights = 2 * streaming_parameters(encoder)
    whole = 2 * num_parameters(encoder)
    peak = measured_peak(encoder, call)
    gc.collect()
    assert weights < peak < LIMIT_BYTES
    assert peak < whole / 3 or whole < 2**31
    assert peak / 2**30 == pytest.approx(expected_gib, rel=0.1)


@pytest.mark.parametrize(
    ("preset", "names"),
    [
        ("hunyuan-video", ("LLaMA 8B", "CLIP ViT-L")),
        ("hunyuan-video-i2v", ("LLaVA-LLaMA 8B", "CLIP ViT-L")),
    ],
)
def test_costs_of_encoders_that_are_on_the_device_together(
    preset: str, names: Sequence[str]
) -> None:
    costs = registry.inspect(Checkpoint.open(preset, configs_only=True), weights=False).costs
    expected = sum(streaming_parameters(on_meta(name)) for name in names)
    assert costs.text_streaming_parameters == expected


@pytest.mark.parametrize(
    ("preset", "names"),
    [("wan2.1-t2v-14b", ["UMT5-XXL"]), ("wan2.1-flf2v-14b-720p", ["UMT5-XXL", "CLIP ViT-H"])],
)
def test_costs_of_encoders_that_take_turns(preset: str, names: Sequence[str]) -> None:
    costs = registry.inspect(Checkpoint.open(preset, configs_only=True), weights=False).costs
    expected = max(streaming_parameters(on_meta(name)) for name in names)
    assert costs.text_streaming_parameters == expected


def test_token_embeddings() -> None:
    """All that look tokens up in one table; none where a head uses the table, too."""
    encoder = UMT5EncoderModel(UMT5Config(vocab_size=9, d_model=4, d_kv=2, d_ff=4, num_layers=1))
    assert len(list(token_embeddings(encoder))) == 2
    assert streaming_parameters(encoder) == num_parameters(encoder) - 9 * 4 + num_parameters(
        encoder.encoder.block[0]
    )
    encoder.head = nn.Linear(4, 9, bias=False)
    encoder.head.weight = encoder.shared.weight
    assert list(token_embeddings(encoder)) == []
