"""Private names of torch, diffusers and transformers that longtake uses.

Each test fails when a new version moves what the named module uses.
"""

from __future__ import annotations

import pytest
import torch

from longtake.configs.field_types import PromptTemplate
from longtake.pipelines.codec.memory import peak_bytes
from longtake.pipelines.models.hunyuan_video.conditioner import image_text
from longtake.pipelines.models.hunyuan_video.conditioner.image_text import ImageTextEncoders
from longtake.pipelines.models.hunyuan_video.conditioner.text import TextEncoders


def test_torch_counts_bytes_without_computing() -> None:
    """``operations.py``: torch._subclasses, torch.utils._python_dispatch, Storage._cdata."""
    size = 1000 * 4
    peak = peak_bytes(lambda x: (x + 1) * 2, (1000,), torch.device("cpu"))
    assert peak == 3 * size  # the input, the sum and the product


@pytest.mark.parametrize("encoders", [TextEncoders, ImageTextEncoders])
def test_diffusers_names_its_prompt_templates(encoders: type[TextEncoders]) -> None:
    """``pipelines/models/hunyuan_video``: DEFAULT_PROMPT_TEMPLATE of two pipelines."""
    template = encoders.default_template()
    assert isinstance(template, PromptTemplate)
    assert "{}" in template.template
    assert template.crop_start > 0


def test_transformers_has_an_image_processor_without_torchvision() -> None:
    """``hunyuan_video/conditioner/image_text.py``: CLIPImageProcessorPil, since transformers 5."""
    assert vars(image_text)["CLIPImageProcessor"]().crop_size
