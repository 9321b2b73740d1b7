"""Blocks of diffusers in a model of one's own, whose sequence is split across ranks.

    torchrun --standalone --nproc-per-node 3 examples/plugs/diffusion_block.py

Each rank holds some of the tokens, and all of the text that they attend to. The output is compared
with the same blocks in one process.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from torch import nn

from longtake.parallel import ParallelDims, TokenShards
from longtake.parallel.plugs.diffusers import UspAttnProcessor
from longtake.parallel.plugs.sequence import ShardedSequence

NUM_TOKENS, NUM_TEXT_TOKENS, NUM_HEADS, HEAD_SIZE = 101, 7, 5, 16
WIDTH = NUM_HEADS * HEAD_SIZE


class Model(nn.Module):
    """Blocks with self-attention and cross attention."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            BasicTransformerBlock(WIDTH, NUM_HEADS, HEAD_SIZE, cross_attention_dim=WIDTH)
            for _ in range(2)
        )

    def set_processor(self, processor: UspAttnProcessor) -> None:
        """Compute all attention with a processor."""
        for module in self.modules():
            if isinstance(module, Attention):
                module.set_processor(processor)

    def forward(self, x: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """``[B, s, WIDTH]`` to the same shape."""
        for block in self.blocks:
            x = block(x, encoder_hidden_states=text)
        return x


@torch.no_grad()
def main() -> None:
    """Run on every rank."""
    dist.init_process_group("gloo")
    torch.manual_seed(0)  # the same weights and inputs on every rank
    model = Model()
    x, text = torch.randn(1, NUM_TOKENS, WIDTH), torch.randn(1, NUM_TEXT_TOKENS, WIDTH)
    expected = model(x, text)

    dims = ParallelDims(ulysses_degree=dist.get_world_size())
    mesh, shards = dims.build_mesh("cpu"), TokenShards.even(NUM_TOKENS, dims)
    model.set_processor(UspAttnProcessor(ShardedSequence(mesh, shards)))
    out = shards.gather(model(shards.split(x, mesh, dim=1), text), mesh, dim=1)

    if dist.get_rank() == 0:
        print(f"largest difference from one process: {(out - expected).abs().max().item():.1e}")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
