"""What plugs refuse, and where they place tokens and labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from torch import nn
from transformers import (
    BartConfig,
    BartForCausalLM,
    FalconConfig,
    FalconForCausalLM,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    RobertaConfig,
    RobertaForCausalLM,
    StableLmConfig,
    StableLmForCausalLM,
)
from transformers.masking_utils import create_causal_mask, create_chunked_causal_mask

from longtake.errors import KernelError, LayoutError, ModelError, RefusedInputError, TensorError
from longtake.parallel import ParallelDims, TokenShards
from longtake.parallel.plugs import transformers as plug
from longtake.parallel.plugs.diffusers import UspAttnProcessor
from longtake.parallel.plugs.sdpa import scaled_dot_product_attention
from longtake.parallel.plugs.sequence import ShardedSequence
from longtake.parallel.plugs.transformers import causal_lm_inputs, set_usp_attention

NUM_TOKENS = 8
SEQUENCE = ShardedSequence(None, TokenShards.even(NUM_TOKENS, ParallelDims()))
TOKENS = torch.arange(3, 3 + NUM_TOKENS)[None]
POSITIONS = SEQUENCE.positions()[None]
SIZES: dict[str, Any] = {
    "vocab_size": 16,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}


def llama(**options: Any) -> LlamaForCausalLM:
    """A tiny decoder with usp attention."""
    model = LlamaForCausalLM(LlamaConfig(**SIZES, **options))
    set_usp_attention(model)
    return model


class TestSequence:
    def test_positions_restart_in_each_document(self) -> None:
        documents = ShardedSequence(None, SEQUENCE.shards, document_lengths=(3, 0, 1, 4))
        assert documents.positions().tolist() == [0, 1, 2, 0, 0, 1, 2, 3]
        assert SEQUENCE.positions().tolist() == list(range(NUM_TOKENS))

    def test_the_last_token_of_a_document_has_no_label(self) -> None:
        documents = ShardedSequence(None, SEQUENCE.shards, document_lengths=(3, 0, 1, 4))
        labels = TOKENS.clone()
        assert SEQUENCE.shift_labels(labels).tolist() == [[4, 5, 6, 7, 8, 9, 10, -100]]
        shifted = documents.shift_labels(labels)
        assert shifted.tolist() == [[4, 5, -100, -100, 8, 9, 10, -100]]
        assert labels.equal(TOKENS)

    def test_labels_are_those_of_the_whole_sequence(self) -> None:
        for labels in (TOKENS[:, 1:], TOKENS[0]):
            with pytest.raises(TensorError, match=r"must be \[batch, 8\]: pass those of the whole"):
                SEQUENCE.shift_labels(labels)

    def test_shards_fit_the_mesh(self) -> None:
        with pytest.raises(LayoutError, match="mesh=None, and shards of 2 ranks"):
            ShardedSequence(None, TokenShards.even(8, ParallelDims(ring_degree=2)))

    def test_options_of_attention_are_passed_on(self) -> None:
        q = torch.zeros(1, NUM_TOKENS, 1, 8)
        with pytest.raises(KernelError, match="no-such-kernel"):
            replace(SEQUENCE, kernel="no-such-kernel").attend(q, q, q, causal=True, scale=None)
        with pytest.raises(TensorError, match="deterministic=2"):
            options: dict[str, Any] = {"deterministic": 2}
            replace(SEQUENCE, **options).attend(q, q, q, causal=True, scale=None)

    def test_narrow_values_are_padded_for_the_exchange_only(self) -> None:
        q, k, v = (torch.randn(1, NUM_TOKENS, 2, size) for size in (8, 8, 3))
        out = SEQUENCE.attend(q, k, v, causal=True, scale=None)
        q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
        expected = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        torch.testing.assert_close(out, expected.transpose(1, 2), rtol=0, atol=1e-5)


class TestTransformers:
    def test_inputs_of_a_causal_language_model(self) -> None:
        labels = TOKENS.masked_fill(TOKENS < 6, -100)
        inputs = causal_lm_inputs(SEQUENCE, TOKENS, labels)
        assert inputs["shift_labels"].tolist() == [[-100, -100, 6, 7, 8, 9, 10, -100]]
        assert inputs["num_items_in_batch"] == 5
        assert inputs["position_ids"].tolist() == [list(range(NUM_TOKENS))]
        assert inputs["labels"].numel() == 0, "a model would shift them inside the shard"

    def test_every_rank_has_a_token(self) -> None:
        empty = ShardedSequence(None, TokenShards.even(0, ParallelDims()))
        with pytest.raises(LayoutError, match="0 tokens on 1 ranks leave a rank without any"):
            causal_lm_inputs(empty, TOKENS[:, :0])

    @pytest.mark.parametrize(
        ("model", "message"),
        [
            (lambda: BartForCausalLM(BartConfig(**SIZES, d_model=16)), "takes no position_ids"),
            (lambda: MambaForCausalLM(MambaConfig(**SIZES)), "takes no position_ids"),
            (lambda: FalconForCausalLM(FalconConfig(**SIZES)), "does not call transformers'"),
            (lambda: RobertaForCausalLM(RobertaConfig(**SIZES)), "not count positions from 0"),
        ],
        ids=["bart", "mamba", "falcon", "roberta"],
    )
    def test_models_that_cannot_be_split_are_refused(
        self, model: Callable[[], PreTrainedModel], message: str
    ) -> None:
        with torch.device("meta"), pytest.raises(ModelError, match=message):
            set_usp_attention(model())

    @pytest.mark.parametrize("layer", [nn.Conv1d(1, 1, 2), nn.LSTM(1, 1)], ids=["conv", "lstm"])
    def test_layers_in_which_tokens_meet_are_refused(self, layer: nn.Module) -> None:
        model = LlamaForCausalLM(LlamaConfig(**SIZES))
        model.model.layers[0].mixer = layer
        with pytest.raises(ModelError, match="neighbors that are on another rank"):
            set_usp_attention(model)
        del model.model.layers[0].mixer
        model.config.layer_types = ["linear_attention"]
        with pytest.raises(ModelError, match="layers of linear_attention: usp attention takes"):
            set_usp_attention(model)
        assert model.config._attn_implementation != "usp"

    def test_an_old_transformers_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(plug, "__version__", "4.57.3")
        with pytest.raises(ModelError, match=r"transformers 4\.57\.3 .*: install transformers>=5"):
            llama()

    def test_a_call_without_a_sequence_is_refused(self) -> None:
        with pytest.raises(LayoutError, match="usp=None in LlamaAttention: pass usp=Sharded"):
            llama()(TOKENS)

    @pytest.mark.parametrize("model_class", [LlamaForCausalLM, GPT2LMHeadModel])
    def test_forgotten_positions_are_refused(self, model_class: type[PreTrainedModel]) -> None:
        model = model_class(model_class.config_class(**SIZES)).eval()
        for _ in range(2):
            set_usp_attention(model)
        assert len(model._forward_pre_hooks) == 1
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        for call in (model, compiled):
            with pytest.raises(Exception, match="usp without position_ids in .*: every rank would"):
                call(TOKENS, usp=SEQUENCE, use_cache=False)
        model(TOKENS, usp=SEQUENCE, position_ids=POSITIONS)

    def test_a_load_balancing_loss_of_each_rank_is_refused(self) -> None:
        model = MixtralForCausalLM(MixtralConfig(**SIZES, sliding_window=None))
        model.config.output_router_logits = True
        with pytest.raises(ModelError, match="output_router_logits in MixtralForCausalLM: every"):
            set_usp_attention(model)
        model.config.output_router_logits = False
        set_usp_attention(model)
        inputs = causal_lm_inputs(SEQUENCE, TOKENS)
        with pytest.raises(ModelError, match="output_router_logits in MixtralForCausalLM: every"):
            model(**inputs, output_router_logits=True)
        del inputs["labels"]
        assert model(**inputs, output_router_logits=True).router_logits

    def test_a_model_that_does_not_pass_the_sequence_on_is_refused(self) -> None:
        model = StableLmForCausalLM(StableLmConfig(**SIZES))
        set_usp_attention(model)
        with pytest.raises(LayoutError, match="usp=None in StableLmAttention"):
            model(**causal_lm_inputs(SEQUENCE, TOKENS))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"attention_mask": TOKENS > 3}, "hides no tokens; leave it out"),
            ({"attention_mask": torch.zeros(1, 1, 8, 8)}, "hides no tokens; leave it out"),
            ({"softcap": 30.0}, "softcap in LlamaAttention: .* does not compute capped scores"),
            ({"s_aux": torch.zeros(2)}, "does not compute attention sinks"),
            ({"sliding_window": 7}, "a window of 7 tokens in LlamaAttention, and 8 tokens"),
            ({"output_attentions": True}, "does not compute the attention weights"),
            ({"cu_seq_lens_q": torch.tensor([0, 8])}, "packed by ShardedSequence's document_leng"),
        ],
    )
    def test_what_is_not_computed_is_refused(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(RefusedInputError, match=message):
            llama()(TOKENS, usp=SEQUENCE, position_ids=POSITIONS, use_cache=False, **options)

    def test_what_hides_nothing_is_accepted(self) -> None:
        model = llama()
        expected = model(TOKENS, usp=SEQUENCE, position_ids=POSITIONS).logits
        everything = {"attention_mask": torch.ones_like(TOKENS), "sliding_window": 8}
        assert model(TOKENS, usp=SEQUENCE, position_ids=POSITIONS, **everything).logits.equal(
            expected
        )

    def test_dropout_is_refused_in_training_only(self) -> None:
        model = llama(attention_dropout=0.1)
        model.eval()(TOKENS, usp=SEQUENCE, position_ids=POSITIONS)
        with pytest.raises(ModelError, match=r"dropout=0\.1 in LlamaAttention: .* config to 0"):
            model.train()(TOKENS, usp=SEQUENCE, position_ids=POSITIONS)

    def test_decoding_with_a_cache_is_refused(self) -> None:
        model = llama()
        cache = model(TOKENS, usp=SEQUENCE, position_ids=POSITIONS, use_cache=True).past_key_values
        with pytest.raises(TensorError, match="9 keys and 1 queries .* pass use_cache=False"):
            model(TOKENS[:, :1], usp=SEQUENCE, position_ids=POSITIONS[:, :1], past_key_values=cache)

    def test_a_call_may_be_bidirectional(self) -> None:
        model = llama()
        causal = model(TOKENS, usp=SEQUENCE, position_ids=POSITIONS).logits
        full = model(TOKENS, usp=SEQUENCE, position_ids=POSITIONS, is_causal=False).logits
        model.set_attn_implementation("sdpa")
        assert not full.allclose(causal, atol=1e-4)
        torch.testing.assert_close(causal, model(TOKENS).logits, rtol=0, atol=1e-5)
        expected = model(TOKENS, is_causal=False).logits
        torch.testing.assert_close(full, expected, rtol=0, atol=1e-5)

    @pytest.mark.parametrize(
        "options",
        [
            {"or_mask_function": lambda *index: index[2] >= 0},
            {"and_mask_function": lambda *index: index[2] >= 0},
            {"block_sequence_ids": torch.zeros_like(TOKENS)},
            {"block_sequence_ids": torch.zeros_like(TOKENS), "position_ids": TOKENS.flip(1)},
        ],
    )
    def test_masks_of_a_model_are_refused(self, options: dict[str, Any]) -> None:
        for create in (create_causal_mask, create_chunked_causal_mask):
            with pytest.raises(ModelError, match="a mask of the model's own"):
                self.mask(create, attention_chunk_size=NUM_TOKENS, **options)

    def test_masks_of_shards_and_of_long_windows_are_none(self) -> None:
        assert self.mask(create_causal_mask) is None
        assert self.mask(create_causal_mask, position_ids=TOKENS.flip(1)) is None

    def test_a_short_chunk_is_refused(self) -> None:
        mask = self.mask(create_chunked_causal_mask, attention_chunk_size=7)
        q = torch.zeros(1, 2, NUM_TOKENS, 8)
        with pytest.raises(ModelError, match="a window of 7 tokens in Identity, and 8 tokens"):
            plug.usp_attention_forward(nn.Identity(), q, q, q, mask, usp=SEQUENCE)

    def mask(self, create: Callable[..., Any], **options: Any) -> Any:
        """The mask that transformers hands to the attention of a model."""
        config = llama().config
        config.attention_chunk_size = options.pop("attention_chunk_size", None)
        inputs = {"inputs_embeds": torch.zeros(1, NUM_TOKENS, 16), "attention_mask": None}
        return create(config, **inputs, past_key_values=None, **options)


class TestSdpa:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"attn_mask": torch.ones(8, 8)}, "attn_mask=Tensor: there are no masks across ranks"),
            ({"dropout_p": 0.1}, "dropout_p=0.1: attention weights are not dropped"),
            ({}, "4 query heads and 2 KV heads: pass enable_gqa=True"),
            ({"ndim": 3}, r"\[batch, heads, tokens, head size\]"),
        ],
        ids=["mask", "dropout", "heads", "dimensions"],
    )
    def test_what_is_not_computed_is_refused(self, options: dict[str, Any], message: str) -> None:
        q, kv = torch.zeros(1, 4, NUM_TOKENS, 8), torch.zeros(1, 2, NUM_TOKENS, 8)
        if options.pop("ndim", 4) == 3:
            q, kv = q[0], kv[0]
        with pytest.raises(TensorError, match=message):
            scaled_dot_product_attention(q, kv, kv, **options, sequence=SEQUENCE)


class TestDiffusers:
    @pytest.mark.parametrize(
        ("module", "inputs", "message"),
        [
            ({}, {"attention_mask": torch.ones(1, 8)}, "there are no masks across ranks"),
            ({}, {"hidden_states": torch.zeros(1, 16, 2, 4)}, r"must be \[batch, tokens, width\]"),
            ({"norm_num_groups": 2}, {}, "group_norm in Attention: .* over all tokens"),
            ({"added_kv_proj_dim": 16}, {}, "add_k_proj in Attention: .* a second stream"),
            (
                {"cross_attention_norm": "group_norm", "cross_attention_norm_num_groups": 2},
                {},
                "norm_cross in Attention: .* over all tokens",
            ),
        ],
        ids=["mask", "picture", "group norm", "two streams", "cross norm"],
    )
    def test_what_is_not_computed_is_refused(
        self, module: dict[str, Any], inputs: dict[str, Any], message: str
    ) -> None:
        processor = UspAttnProcessor(SEQUENCE)
        attention = Attention(16, heads=2, dim_head=8, **module, processor=processor)
        with pytest.raises(RefusedInputError, match=message):
            attention(**{"hidden_states": torch.zeros(1, NUM_TOKENS, 16), **inputs})

    def test_documents_in_cross_attention_are_refused(self) -> None:
        processor = UspAttnProcessor(replace(SEQUENCE, document_lengths=(3, 5)))
        attention = Attention(16, 12, heads=2, dim_head=8, processor=processor)
        with pytest.raises(TensorError, match=r"document_lengths=\(3, 5\) in cross attention: whi"):
            attention(torch.zeros(1, NUM_TOKENS, 16), torch.zeros(1, 4, 12))

    def test_attention_is_causal_if_the_module_is(self) -> None:
        processor = UspAttnProcessor(SEQUENCE)
        attention = Attention(16, heads=2, dim_head=8, processor=processor, is_causal=True)
        x = torch.randn(1, NUM_TOKENS, 16)
        first, last = attention(x), attention(torch.cat([x[:, :-1], 1 + x[:, -1:]], dim=1))
        assert first[:, :-1].equal(last[:, :-1]) and not first[:, -1].equal(last[:, -1])
