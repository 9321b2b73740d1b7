"""Counts of a model of two experts with cross attention, whose sums are known."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
import torch
from torch import nn

from longtake.configs.request import ResolvedRequest
from longtake.parallel import ParallelDims, TokenShards, usp_attention
from longtake.pipelines.costs import AttentionHeads
from longtake.pipelines.counting.count import ModelCounter
from longtake.pipelines.counting.skeleton import Skeleton
from longtake.pipelines.family import Denoiser, Streams
from longtake.pipelines.layout import VideoLayout
from longtake.pipelines.runtime.stepper import Step
from tests.unit.pipelines.counting.planned import spec_of

WIDTH, HEADS, TEXT_WIDTH, BLOCKS = 24, 3, 10, 2
VALUES = 16
"""Values of a token of the tiny HunyuanVideo, whose latents this model denoises."""


class Block(nn.Module):
    """Self-attention across ranks, and cross attention to text that every rank has whole."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.query, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor, keys: torch.Tensor, layout: VideoLayout) -> torch.Tensor:
        normed = self.norm(x.float()).to(x.dtype)
        q, k, v = self.qkv(normed).unflatten(-1, (3 * HEADS, -1)).chunk(3, dim=2)
        x = x + usp_attention(q, k, v, mesh=layout.mesh, shards=layout.shards).flatten(2)
        q = self.query(x).unflatten(-1, (HEADS, -1))
        own, whole = (TokenShards.even(each.shape[1], ParallelDims()) for each in (q, keys))
        text = usp_attention(q, keys, keys, mesh=None, shards=own, kv_shards=whole)
        added: torch.Tensor = self.out(text.flatten(2))
        return x + added


class Expert(nn.Module):
    """Embeds, runs its blocks, and projects."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(VALUES, WIDTH), nn.Linear(WIDTH, VALUES)
        self.text = nn.Linear(TEXT_WIDTH, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(BLOCKS))


@dataclass
class Pass:
    """Inputs of a pass; its first step embeds the text for all of them."""

    text: torch.Tensor
    layout: VideoLayout
    keys: dict[Expert, torch.Tensor] = field(default_factory=dict)


class TwoExperts(Denoiser[Pass]):
    """One expert for early steps, and one for late ones."""

    def __init__(self) -> None:
        super().__init__()
        self.early, self.late = Expert(), Expert()

    @property
    def chains(self) -> Sequence[Sequence[nn.Module]]:
        return [list(self.early.blocks), list(self.late.blocks)]

    def prepare(
        self, streams: Streams, layout: VideoLayout, request: ResolvedRequest, pictures: Streams
    ) -> Pass:
        return Pass(streams["text"].to(self.early.embed.weight.dtype), layout)

    def forward(self, tokens: torch.Tensor, step: Step, inputs: Pass) -> torch.Tensor:
        expert = self.early if step.value > 500 else self.late
        if expert not in inputs.keys:
            inputs.keys[expert] = expert.text(inputs.text).unflatten(-1, (HEADS, -1))
        x = expert.embed(tokens.to(inputs.text.dtype))
        (x,) = self.run_blocks(list(expert.blocks), [x], inputs.keys[expert], inputs.layout)
        velocity: torch.Tensor = expert.head(x)
        return velocity


@pytest.fixture
def counter(model: str) -> ModelCounter:
    with torch.device("meta"):
        denoiser, vae = TwoExperts().requires_grad_(False), nn.Linear(2, 3)

    def streams(num_text_tokens: int) -> Streams:
        return {"text": torch.empty(1, num_text_tokens, TEXT_WIDTH)}

    def decoder(request: object) -> None:
        raise AssertionError

    return ModelCounter(
        Skeleton(denoiser, streams, vae, decoder, float32=re.compile(r"\.norm\.")),  # type: ignore[arg-type]
        spec_of(model),
    )


@pytest.mark.parametrize("element_size", [2, 4])
def test_a_pass_runs_one_expert_after_the_text_was_embedded(
    counter: ModelCounter, element_size: int
) -> None:
    counts = counter.transformer(element_size)
    assert counts.heads == AttentionHeads(BLOCKS, HEADS, HEADS, WIDTH // HEADS)
    for num_tokens, text_tokens in ((100, 7), (75_600, 512)):
        work = counts.work_of(num_tokens, text_tokens)
        products = 2 * VALUES * WIDTH + BLOCKS * 5 * WIDTH * WIDTH
        assert work.linear_flops == 2 * products * num_tokens
        assert work.attention_flops == 4 * BLOCKS * WIDTH * num_tokens * text_tokens
        assert work.convolution_flops == 0
    first = counter.count_pass((1, 3, 5), 7, element_size)
    assert first.tokens == (15, 7)
    assert first.work.linear_flops == 2 * (products * 15 + TEXT_WIDTH * WIDTH * 7)
    launches = counts.work_of(1, 1).launches
    assert (first.work.launches - launches, launches > BLOCKS) == (1, True)


def test_memory_of_a_pass(counter: ModelCounter) -> None:
    counts = counter.transformer(4)
    _, per_token = counts.attention_bytes
    # the latents; their embedding, which forward keeps; in the second block its input, the
    # normalized input, and q, k and v
    assert per_token == 4 * (VALUES + WIDTH + WIDTH + WIDTH + 3 * WIDTH)
    constant, slope = counts.peak_bytes
    assert slope >= per_token
    assert constant < 4 * 64 * 10 * WIDTH


def test_sizes_of_experts(counter: ModelCounter) -> None:
    modules = counter.modules()
    block = 2 * WIDTH + 5 * WIDTH * WIDTH + 5 * WIDTH
    outside = 2 * VALUES * WIDTH + VALUES + WIDTH + TEXT_WIDTH * WIDTH + WIDTH
    assert (modules.num_experts, modules.block_parameters) == (2, block)
    assert modules.non_block_parameters == outside
    assert modules.float32 == 4 * BLOCKS * ((WIDTH,),)
    assert len(modules.transformer) == 2 * (6 + 8 * BLOCKS)
    assert (modules.autoencoder, modules.text_encoders) == (9, None)
