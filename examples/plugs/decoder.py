"""One training step of a transformers decoder whose sequence is split across ranks.

    torchrun --standalone --nproc-per-node 3 examples/plugs/decoder.py

Each rank holds some of the tokens and all of the weights. The gradients are compared with those of
one process. Any decoder of transformers whose tokens meet in attention alone works like this one.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from transformers import LlamaConfig, LlamaForCausalLM

from longtake.parallel import ParallelDims, TokenShards
from longtake.parallel.plugs.sequence import ShardedSequence
from longtake.parallel.plugs.transformers import causal_lm_inputs, set_usp_attention

NUM_TOKENS = 101
CONFIG = LlamaConfig(
    vocab_size=64,
    hidden_size=40,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=5,
    num_key_value_heads=5,
)


def gradients(model: LlamaForCausalLM) -> torch.Tensor:
    """The gradients of all weights, in one vector."""
    return torch.cat([weight.grad.flatten() for weight in model.parameters()])


def main() -> None:
    """Run on every rank."""
    dist.init_process_group("gloo")
    torch.manual_seed(0)  # the same weights and tokens on every rank
    model = LlamaForCausalLM(CONFIG)
    tokens = torch.randint(CONFIG.vocab_size, (1, NUM_TOKENS))

    model(tokens, labels=tokens, use_cache=False).loss.backward()  # in one process
    expected = gradients(model)
    model.zero_grad()

    dims = ParallelDims(ring_degree=dist.get_world_size())
    shards = TokenShards.zigzag(NUM_TOKENS, dims)
    sequence = ShardedSequence(dims.build_mesh("cpu"), shards)
    set_usp_attention(model)
    model(**causal_lm_inputs(sequence, tokens)).loss.backward()
    total = gradients(model)
    dist.all_reduce(total)  # the sum over the ranks of the sequence

    if dist.get_rank() == 0:
        print(f"largest difference from one process: {(total - expected).abs().max().item():.1e}")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
