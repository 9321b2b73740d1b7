"""What autograd keeps of a block, and the memory of ranks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

from longtake.configs.base import Dtype
from longtake.configs.decoders import DecoderConfig, load_decoder
from longtake.configs.hardware import load_hardware
from longtake.engine.planning.training.layouts import TrainingLayout, Zero
from longtake.engine.planning.training.memory import plan_memory, saved_bytes
from longtake.engine.planning.training.training_input import TrainingInput

TOKENS = 48


def training(model: str = "llama3-8b", **changes: Any) -> TrainingInput:
    fields: dict[str, Any] = {"sequence": 65536, **changes}
    return TrainingInput(config=load_decoder(model), hardware=load_hardware("a800"), **fields)


def tiny(dtype: Dtype, kv_heads: int) -> TrainingInput:
    shape = DecoderConfig(
        hidden_size=64,
        intermediate_size=176,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        head_dim=16,
        vocab_size=32,
    )
    return TrainingInput(config=shape, hardware=load_hardware("a800"), sequence=TOKENS, dtype=dtype)


def kept_by_autograd(shape: DecoderConfig, dtype: torch.dtype) -> int:
    """Bytes that autograd keeps of transformers' block, weights and angles aside."""
    config = LlamaConfig(**shape.model_dump(exclude={"model_type"}))
    config._attn_implementation = "sdpa"
    block = LlamaDecoderLayer(config, 0).to(dtype)
    tokens = torch.randn(1, TOKENS, config.hidden_size, dtype=dtype, requires_grad=True)
    angles = LlamaRotaryEmbedding(config)(tokens, torch.arange(TOKENS)[None])
    other = {each.untyped_storage().data_ptr() for each in (*block.parameters(), *angles)}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        block(tokens, position_embeddings=angles, attention_mask=None)
    return sum(each.untyped_storage().nbytes() for at, each in kept.items() if at not in other)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_block_keeps_what_transformers_block_keeps(dtype: Dtype, kv_heads: int) -> None:
    planned = tiny(dtype, kv_heads)
    kept = kept_by_autograd(planned.config, getattr(torch, dtype))
    assert TOKENS * saved_bytes(planned, TrainingLayout(), "none") == kept


def test_recomputation_keeps_less() -> None:
    kept = [
        saved_bytes(training(), TrainingLayout(), each) for each in ("none", "selective", "full")
    ]
    assert kept == sorted(kept, reverse=True)
    assert kept[2] == 2 * 4096
    assert kept[1] == 2 * 2 * 4096 + 4 * 32


def test_weights_gradients_and_states_have_the_bytes_of_a_parameter() -> None:
    """Megatron-LM states 18 bytes a parameter, and 6 + 12/d with its distributed optimizer."""
    parameters = training().decoder.parameters
    assert parameters == 8_030_261_248  # of the released model
    by_stage: dict[Zero, float] = {0: 18.0, 1: 6 + 12 / 16, 2: 2 + 16 / 16}
    for zero, states in by_stage.items():
        memory = plan_memory(training(), TrainingLayout(ring=2, ulysses=8, zero=zero), "none")
        unreduced = 4 * 2 * training().decoder.vocabulary_parameters if zero == 2 else 0
        held = memory.weights + memory.gradients + memory.optimizer
        assert held == pytest.approx(states * parameters + unreduced, rel=1e-9)
    assert training("llama2-7b").decoder.parameters == 6_738_415_616
    assert training("llama3-70b").decoder.parameters == 70_553_706_496


@pytest.mark.parametrize("tied", [False, True])
def test_zero_3_holds_the_embedding_and_the_output_layer_whole(tied: bool) -> None:
    """They are one group of FSDP2; two blocks are whole beside it."""
    planned = training()
    shape = planned.config.model_copy(update={"tie_word_embeddings": tied})
    planned = replace(planned, config=shape)
    decoder, layout = planned.decoder, TrainingLayout(ring=2, ulysses=8, zero=3)
    memory = plan_memory(planned, layout, "none")
    vocabulary = (1 if tied else 2) * decoder.vocabulary_parameters
    whole = 2 * decoder.block_parameters + vocabulary
    assert memory.weights == pytest.approx(2 * (decoder.parameters / 16 + whole), rel=1e-9)
    assert memory.gradients == pytest.approx(4 * (decoder.parameters / 16 + vocabulary), rel=1e-9)
    # stages hold one of the two
    stages = replace(layout, ring=1, pipeline=2)
    memory = plan_memory(planned, stages, "none")
    own = decoder.stage_parameters(2)
    whole = 2 * decoder.block_parameters + decoder.vocabulary_parameters
    assert memory.weights == pytest.approx(2 * (own / 8 + whole), rel=1e-9)


def test_each_parallelism_divides_its_part() -> None:
    whole = plan_memory(training(), TrainingLayout(), "none")
    tensor = plan_memory(training(), TrainingLayout(tensor=8), "none")
    plain = plan_memory(training(), TrainingLayout(tensor=8, tensor_sequence=False), "none")
    ring = plan_memory(training(), TrainingLayout(ring=8, zero=3), "none")
    stages = plan_memory(training(), TrainingLayout(pipeline=8), "none")
    for part in ("weights", "gradients", "optimizer", "activations"):
        assert getattr(tensor, part) == pytest.approx(getattr(whole, part) / 8, rel=1e-6)
    assert tensor.activations < plain.activations < whole.activations
    assert ring.activations == pytest.approx(whole.activations / 8, rel=1e-6)
    assert ring.optimizer == pytest.approx(whole.optimizer / 8, rel=1e-6)
    assert stages.optimizer < whole.optimizer / 5  # a stage with a vocabulary beside its blocks
    assert stages.activations == pytest.approx(whole.activations / 8, rel=1e-6)
    assert stages.logits == whole.logits
    batch = plan_memory(training(batch=8), TrainingLayout(pipeline=8), "none")
    assert batch.activations == pytest.approx(whole.activations, rel=1e-6)  # 8 in flight
    assert batch.logits == 0  # of the first stage
