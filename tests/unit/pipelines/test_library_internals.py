"""Private names of torch, diffusers and transformers that longtake uses.

Each test fails when a new version moves what the named module uses.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import CLIPTextModel, CLIPVisionModel, LlamaModel, UMT5EncoderModel

from longtake.pipelines.codec.memory import peak_bytes
from longtake.pipelines.models.hunyuan_video.conditioner.image_text import ImageTextEncoders
from longtake.pipelines.models.hunyuan_video.conditioner.text import TextEncoders
from longtake.pipelines.models.wan.codec.autoencoder import feature_cache
from longtake.pipelines.prompt_tokens import PromptTemplate
from longtake.pipelines.text_encoders import loading
from tests.wan_coding import KINDS, Kind, vae


def test_torch_counts_bytes_without_computing() -> None:
    """``operations.py``: torch._subclasses, torch.utils._python_dispatch, Storage._cdata."""
    size = 1000 * 4
    peak = peak_bytes(lambda x: (x + 1) * 2, (1000,), torch.device("cpu"))
    assert peak == 3 * size  # the input, the sum and the product


@pytest.mark.parametrize("kind", KINDS)
def test_wan_autoencoder_takes_a_feature_cache(kind: Kind) -> None:
    """``wan/codec/autoencoder.py``: arguments of the encoder and the decoder, and the entries that
    they fill."""
    model = vae(kind)
    for coder, channels, more in (
        (model.encoder, model.config.in_channels, {}),
        (model.decoder, model.config.z_dim, {"first_chunk": True}),
    ):
        cache, position = feature_cache(coder), [0]
        frame = torch.zeros(1, channels, 1, 8, 8)
        coder(frame, feat_cache=cache, feat_idx=position, **more)
        assert 0 < position[0] <= len(cache)
        assert all(entry is not None for entry in cache[: position[0]])


@pytest.mark.parametrize("encoders", [TextEncoders, ImageTextEncoders])
def test_diffusers_names_its_prompt_templates(encoders: type[TextEncoders]) -> None:
    """``pipelines/models/hunyuan_video``: DEFAULT_PROMPT_TEMPLATE of two pipelines."""
    template = encoders.default_template()
    assert isinstance(template, PromptTemplate)
    assert "{}" in template.template
    assert template.crop_start > 0


def test_transformers_has_an_image_processor_without_torchvision() -> None:
    """``text_encoders/loading.py``: CLIPImageProcessorPil, since transformers 5."""
    assert vars(loading)["CLIPImageProcessor"]().crop_size


@pytest.mark.parametrize("encoder", [LlamaModel, CLIPTextModel, CLIPVisionModel, UMT5EncoderModel])
def test_transformers_tells_which_encoders_use_torch_attention(encoder: Any) -> None:
    """``text_encoders/loading.py``: _supports_sdpa."""
    assert encoder._supports_sdpa
