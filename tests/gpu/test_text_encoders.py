"""Text encoders whose layers are streamed to a GPU: the bits of resident ones, in less memory."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaModel, UMT5EncoderModel

from longtake.configs.fields.weights import TextPlace
from longtake.pipelines.loading.checkpoint import Checkpoint
from longtake.pipelines.loading.plan import ComponentPlan
from longtake.pipelines.text_encoders import tensor_names
from longtake.pipelines.text_encoders.configs import LlamaConfig, Umt5Config
from longtake.pipelines.text_encoders.layers import streaming_parameters
from longtake.pipelines.text_encoders.loading import load_encoder
from longtake.pipelines.text_encoders.tensors import llama_tensors, umt5_tensors
from tests import tiny

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

LLAMA: dict[str, Any] = dict(
    vocab_size=32000,
    hidden_size=2048,
    intermediate_size=5632,
    num_attention_heads=16,
    num_key_value_heads=4,
    num_hidden_layers=12,
    model_type="llama",
)
UMT5: dict[str, Any] = dict(
    vocab_size=32000,
    d_model=2048,
    d_kv=64,
    d_ff=5120,
    num_layers=10,
    num_heads=32,
    feed_forward_proj="gated-gelu",
    model_type="umt5",
)

ENCODERS: dict[str, tuple[Any, dict[str, Any], Any, Any]] = {
    "LLaMA": (LlamaModel, LLAMA, dict(llama_tensors(LlamaConfig.model_validate(LLAMA))), dict),
    "UMT5": (
        UMT5EncoderModel,
        UMT5,
        dict(umt5_tensors(Umt5Config.model_validate(UMT5))),
        tensor_names.umt5_encoder,
    ),
}
"""Class, configuration, tensors, and their renaming; of about 1 GiB each."""


def saved(folder: Path, name: str) -> Path:
    """A model whose text encoder has random weights in float16."""
    _, config, tensors, _ = ENCODERS[name]
    tiny.save(folder)
    shutil.rmtree(folder / "text_encoder")
    (folder / "text_encoder").mkdir()
    (folder / "text_encoder" / "config.json").write_text(json.dumps(config))
    values = {key: (torch.rand(shape) - 0.5).div(8).half() for key, shape in tensors.items()}
    save_file(values, folder / "text_encoder" / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("name", ENCODERS)
@torch.no_grad()
def test_states_and_memory_of_each_place(tmp_path: Path, name: str) -> None:
    """Three times each, so that copies meet computation in every order."""
    encoder_class, _, _, rename = ENCODERS[name]
    gpu = torch.device("cuda", torch.cuda.current_device())
    checkpoint = Checkpoint.open(str(saved(tmp_path / "model", name)))
    tokens = torch.arange(0, 400, 2, device=gpu)[None]
    expected = None
    _ = torch.ones(8, 8, device=gpu, dtype=torch.bfloat16) @ torch.ones(8, device=gpu).bfloat16()
    # cuBLAS's workspace stays from here on
    places: tuple[TextPlace, ...] = ("resident", "streamed", "disk")
    for place in places:
        plan = ComponentPlan(torch.bfloat16, place)
        encoder = load_encoder(checkpoint, "text_encoder", encoder_class, plan, gpu, rename)
        before = torch.cuda.memory_allocated(gpu)
        torch.cuda.reset_peak_memory_stats(gpu)
        for _ in range(3):
            with encoder.on_device():
                states = encoder.module(tokens, output_hidden_states=True).hidden_states
            found = [each.cpu() for each in states]
            del states
            if expected is None:
                expected, weights = found, 2 * streaming_parameters(encoder.module)
            torch.testing.assert_close(found, expected, rtol=0, atol=0)
        if place != "resident":
            peak = torch.cuda.max_memory_allocated(gpu) - before
            assert weights < peak < weights + 2**27  # activations
        assert torch.cuda.memory_allocated(gpu) - before < 2**20
