"""Models of transformers and diffusers on N ranks equal themselves in one process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from longtake.parallel import ParallelDims, TokenShards
from longtake.parallel.plugs.sdpa import scaled_dot_product_attention
from longtake.parallel.plugs.sequence import ShardedSequence
from tests.layouts import layout_name
from tests.ranks import RankGroups, mesh_of, random_tensors

LAYOUTS = [
    ParallelDims(ring_degree=3),
    ParallelDims(ring_degree=2, ulysses_degree=2),
]
NUM_TOKENS = 23
TOLERANCE = 1e-5

SIZES = {
    "vocab_size": 32,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS = {"num_local_experts": 3, "num_experts_per_tok": 2}
LATENT = {
    "num_key_value_heads": 4,
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,  # less than the 12 of queries and keys
    "moe_intermediate_size": 8,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
WINDOW = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": NUM_TOKENS}
DECODERS: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": {},
    "Qwen2ForCausalLM": {},
    "Qwen3ForCausalLM": {"head_dim": 8},
    "MistralForCausalLM": {"sliding_window": None},
    "MixtralForCausalLM": {"sliding_window": None, **EXPERTS},
    "GemmaForCausalLM": {"head_dim": 8},
    "Gemma3ForCausalLM": {"head_dim": 8, **WINDOW},
    "Olmo3ForCausalLM": WINDOW,
    "GPTNeoXForCausalLM": {},
    "GPT2LMHeadModel": {"n_inner": 40, "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0},
    "PhiForCausalLM": {},
    "DeepseekV3ForCausalLM": LATENT,
}
"""Decoders of transformers, and what their tiny configs have besides ``SIZES``."""


def decoder(name: str) -> Any:
    """A tiny decoder, the same on every rank."""
    import transformers

    cls = getattr(transformers, name)
    torch.manual_seed(0)
    model = cls(cls.config_class(**{**SIZES, **DECODERS[name]}))
    return model.train()


def tokens_of(batch: int = 2) -> torch.Tensor:
    """Tokens of a whole sequence, the same on every rank."""
    return torch.randint(3, 32, (batch, NUM_TOKENS), generator=torch.Generator().manual_seed(1))


def sequence_of(dims: ParallelDims) -> ShardedSequence:
    """A sequence in zigzag."""
    return ShardedSequence(mesh_of(dims), TokenShards.zigzag(NUM_TOKENS, dims))


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    """The gradients of all weights; the model's are reset."""
    found = {
        name: torch.zeros_like(weight) if weight.grad is None else weight.grad
        for name, weight in model.named_parameters()
    }
    model.zero_grad()
    return found


def assert_sums_equal(
    parts: dict[str, torch.Tensor], whole: dict[str, torch.Tensor], case: str
) -> None:
    """Check that the sums over all ranks equal the tensors of one process."""
    for name, part in parts.items():
        total = part.detach().clone()
        dist.all_reduce(total)
        error = (total - whole[name]).abs().max().item()
        assert error <= TOLERANCE, f"{case} {name}: off by {error}"


def loss_alone(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """The loss in one process."""
    loss: torch.Tensor = model(tokens, labels=tokens, use_cache=False).loss
    return loss


def loss_split(model: Any, sequence: ShardedSequence, tokens: torch.Tensor) -> torch.Tensor:
    """This rank's part of the loss."""
    from longtake.parallel.plugs.transformers import causal_lm_inputs

    loss: torch.Tensor = model(**causal_lm_inputs(sequence, tokens)).loss
    return loss


def check_step(
    model: Any, whole: Callable[[], torch.Tensor], part: Callable[[], torch.Tensor], case: str
) -> None:
    """Check that the losses, and the gradients, of all ranks sum to those of one process."""
    from longtake.parallel.plugs.transformers import set_usp_attention

    expected = whole()
    expected.backward()
    wanted = {"loss": expected, **gradients(model)}
    assert max(gradient.abs().max().item() for gradient in wanted.values()) > 1e-2
    set_usp_attention(model)
    loss = part()
    loss.backward()
    assert_sums_equal({"loss": loss, **gradients(model)}, wanted, case)


def check_decoders(dims: ParallelDims) -> None:
    """On one rank: a training step of each decoder."""
    tokens, sequence = tokens_of(), sequence_of(dims)
    for name in DECODERS:
        model = decoder(name)
        part = partial(loss_split, model, sequence, tokens)
        check_step(model, partial(loss_alone, model, tokens), part, name)


@pytest.mark.parametrize("dims", LAYOUTS, ids=layout_name)
def test_decoders_train_as_in_one_process(ranks: RankGroups, dims: ParallelDims) -> None:
    ranks.run(dims.world_size, check_decoders, dims)


def check_packed_documents(dims: ParallelDims) -> None:
    """On one rank: documents in one sequence, with a prompt that is not predicted."""
    from longtake.parallel.plugs.transformers import causal_lm_inputs

    model, tokens, lengths = decoder("LlamaForCausalLM"), tokens_of(batch=1), (7, 1, 15)
    labels = tokens.clone()
    labels[:, :3] = -100
    sequence = replace(sequence_of(dims), document_lengths=lengths)

    def whole() -> torch.Tensor:
        parts = zip(tokens.split(lengths, dim=1), labels.split(lengths, dim=1), strict=True)
        losses = [
            model(ids, labels=wanted, use_cache=False, num_items_in_batch=18).loss
            for ids, wanted in parts
        ]
        return torch.stack(losses).sum()

    inputs = causal_lm_inputs(sequence, tokens, labels)
    assert inputs["num_items_in_batch"] == 18  # 4 + 0 + 14
    check_step(model, whole, lambda: model(**inputs).loss, "documents")


def check_checkpointing(dims: ParallelDims) -> None:
    """On one rank: activations are recomputed in the backward pass."""
    model, tokens = decoder("LlamaForCausalLM"), tokens_of()
    model.activation_checkpointing_enable()
    part = partial(loss_split, model, sequence_of(dims), tokens)
    check_step(model, partial(loss_alone, model, tokens), part, "recomputed")


def check_compiled(dims: ParallelDims) -> None:
    """On one rank: the model is one graph."""
    model, tokens = decoder("LlamaForCausalLM"), tokens_of()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    part = partial(loss_split, compiled, sequence_of(dims), tokens)
    check_step(model, partial(loss_alone, model, tokens), part, "compiled")


def check_split_weights(dims: ParallelDims) -> None:
    """On one rank: FSDP2 splits the weights over the ranks of the sequence."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    from longtake.parallel.plugs.transformers import set_usp_attention

    model, tokens, sequence = decoder("LlamaForCausalLM"), tokens_of(), sequence_of(dims)
    loss_alone(model, tokens).backward()
    expected = gradients(model)
    set_usp_attention(model)
    for part in (*model.model.layers, model):
        fully_shard(part, mesh=init_device_mesh("cpu", (dims.world_size,)))
    loss_split(model, sequence, tokens).backward()
    for name, weight in model.named_parameters():
        mean = weight.grad.full_tensor()
        error = (mean * dims.world_size - expected[name]).abs().max().item()
        assert error <= TOLERANCE, f"{name}: off by {error}"


@pytest.mark.parametrize(
    "check", [check_packed_documents, check_checkpointing, check_compiled, check_split_weights]
)
def test_training_composes(ranks: RankGroups, check: Callable[[ParallelDims], None]) -> None:
    dims = ParallelDims(ring_degree=2, ulysses_degree=2)
    ranks.run(dims.world_size, check, dims)


def check_function(dims: ParallelDims) -> None:
    """On one rank: the function with torch's signature, and its gradients."""
    for is_causal, shards in (
        (True, TokenShards.zigzag(NUM_TOKENS, dims)),
        (False, TokenShards.even(NUM_TOKENS, dims)),
    ):
        sequence = ShardedSequence(mesh_of(dims), shards)
        q, k, v, upstream = random_tensors(0, [(2, heads, NUM_TOKENS, 8) for heads in (6, 2, 2, 6)])
        options: dict[str, Any] = {"is_causal": is_causal, "scale": 0.3, "enable_gqa": True}
        whole = [tensor.requires_grad_() for tensor in (q, k, v)]
        expected = F.scaled_dot_product_attention(q, k, v, **options)
        expected.backward(upstream)
        parts = [sequence.split(x.detach(), dim=2).clone().requires_grad_() for x in whole]
        attention = partial(scaled_dot_product_attention, sequence=sequence)
        out = attention(parts[0], parts[1], parts[2], **options)
        out.backward(sequence.split(upstream, dim=2))
        torch.testing.assert_close(out, sequence.split(expected, dim=2), rtol=0, atol=TOLERANCE)
        for part, tensor in zip(parts, whole, strict=True):
            assert tensor.grad is not None
            torch.testing.assert_close(
                part.grad, sequence.split(tensor.grad, dim=2), rtol=0, atol=TOLERANCE
            )


@pytest.mark.parametrize("dims", LAYOUTS, ids=layout_name)
def test_function_of_torch_signature(ranks: RankGroups, dims: ParallelDims) -> None:
    ranks.run(dims.world_size, check_function, dims)


def attention_modules() -> dict[str, Any]:
    """Attention modules of diffusers, and one that inherits their mixin."""
    from diffusers.models.attention_processor import Attention
    from diffusers.models.transformers.transformer_flux import FluxAttention
    from diffusers.models.transformers.transformer_wan import WanAttention, WanAttnProcessor

    torch.manual_seed(0)
    norms = ("layer_norm", "rms_norm", "l2")
    return {
        "plain": Attention(24, heads=3, dim_head=8, bias=True, residual_connection=True),
        **{norm: Attention(24, heads=3, dim_head=8, qk_norm=norm) for norm in norms},
        "unscaled": Attention(24, heads=3, dim_head=8, scale_qk=False, rescale_output_factor=2.0),
        "cross": Attention(24, 16, heads=3, dim_head=8, cross_attention_norm="layer_norm"),
        "mixin": FluxAttention(24, heads=3, dim_head=8, bias=True, pre_only=True),
        "all heads": WanAttention(24, heads=3, dim_head=8, processor=WanAttnProcessor()),
    }


def check_modules(dims: ParallelDims) -> None:
    """On one rank: attention modules of diffusers, and the gradients of their weights."""
    from longtake.parallel.plugs.diffusers import UspAttnProcessor

    mesh, shards = mesh_of(dims), TokenShards.even(NUM_TOKENS, dims)
    text_shards = TokenShards.even(7, dims)
    sequence = ShardedSequence(mesh, shards)
    x, text, angles = random_tensors(0, [(2, NUM_TOKENS, 24), (2, 7, 16), (NUM_TOKENS, 8)])
    for name, module in attention_modules().items():
        inputs: dict[str, Any] = {"encoder_hidden_states": text} if name == "cross" else {}
        splits = [(UspAttnProcessor(sequence), inputs)]
        if name == "cross":
            own = {"encoder_hidden_states": text_shards.split(text, mesh, dim=1)}
            splits.append((UspAttnProcessor(sequence, kv_shards=text_shards), own))
        if name == "mixin":
            rotation = (angles.cos(), angles.sin())
            inputs = {"image_rotary_emb": rotation}
            splits[0][1]["image_rotary_emb"] = tuple(sequence.split(x, dim=0) for x in rotation)
        expected = module(x, **inputs)
        expected.square().sum().backward()
        wanted = gradients(module)
        for processor, own in splits:
            module.set_processor(processor)
            out = module(sequence.split(x, dim=1), **own)
            torch.testing.assert_close(out, sequence.split(expected, dim=1), rtol=0, atol=TOLERANCE)
            out.square().sum().backward()
            scale = max(gradient.abs().max().item() for gradient in wanted.values())
            assert_sums_equal(
                {key: part / scale for key, part in gradients(module).items()},
                {key: whole / scale for key, whole in wanted.items()},
                name,
            )


@pytest.mark.parametrize("dims", LAYOUTS, ids=layout_name)
def test_attention_modules_of_diffusers(ranks: RankGroups, dims: ParallelDims) -> None:
    ranks.run(dims.world_size, check_modules, dims)
