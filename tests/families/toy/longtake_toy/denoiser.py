"""The transformer. Legend: B videos, s a rank's tokens, P values a token, L bytes, D width."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from longtake.configs.request import ResolvedRequest
from longtake.parallel import usp_attention
from longtake.pipelines.family import Denoiser, Streams
from longtake.pipelines.layout import VideoLayout
from longtake.pipelines.runtime.stepper import Step
from longtake_toy.spec import PATCH, ToyConfig


@dataclass(frozen=True)
class ToyPass:
    """Inputs of one pass that stay the same over the steps of a video."""

    layout: VideoLayout
    text: torch.Tensor  # [B, L, text size]: every rank holds all of it
    places: torch.Tensor  # [s, 3]: frame, row and column of each token


class ToyBlock(nn.Module):
    """Self-attention over the video, cross attention to the text, and a feed-forward."""

    def __init__(self, config: ToyConfig, kernel: str) -> None:
        super().__init__()
        self._heads, self._kernel = (config.num_heads, config.head_size), kernel
        width = prod(self._heads)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.to_qkv, self.to_out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.text_q, self.text_out = nn.Linear(width, width), nn.Linear(width, width)
        self.text_kv = nn.Linear(config.text_size, 2 * width)
        self.to_inner, self.from_inner = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, tokens: torch.Tensor, inputs: ToyPass) -> torch.Tensor:
        """``[B, s, D]`` to the same."""
        mesh, shards = inputs.layout.mesh, inputs.layout.shards
        q, k, v = self.to_qkv(self.norms[0](tokens)).unflatten(-1, (3, *self._heads)).unbind(2)
        attended = usp_attention(q, k, v, mesh=mesh, shards=shards, kernel=self._kernel)
        tokens = tokens + self.to_out(attended.flatten(2))
        q = self.text_q(self.norms[1](tokens)).unflatten(-1, self._heads)
        k, v = self.text_kv(inputs.text).unflatten(-1, (2, *self._heads)).unbind(2)
        heads_first = (each.transpose(1, 2) for each in (q, k, v))
        attended = scaled_dot_product_attention(*heads_first).transpose(1, 2)
        tokens = tokens + self.text_out(attended.flatten(2))
        inner = gelu(self.to_inner(self.norms[2](tokens)))
        return tokens.add(self.from_inner(inner))


class ToyDenoiser(Denoiser[ToyPass]):
    """The transformer, whose parameters have the names of those in its file."""

    def __init__(self, config: ToyConfig, kernel: str = "auto") -> None:
        super().__init__()
        width, values = config.num_heads * config.head_size, prod(PATCH) * config.latent_channels
        self.embed, self.head = nn.Linear(values, width), nn.Linear(width, values)
        self.place, self.time = nn.Linear(3, width), nn.Linear(1, width)
        self.blocks = nn.ModuleList(ToyBlock(config, kernel) for _ in range(config.num_layers))

    @property
    def chains(self) -> Sequence[Sequence[nn.Module]]:
        return [list(self.blocks)]

    def prepare(
        self, streams: Streams, layout: VideoLayout, request: ResolvedRequest, pictures: Streams
    ) -> ToyPass:
        """Prepare a pass from ``text``, ``[1, L, text size]``."""
        like = self.embed.weight
        axes = (torch.arange(count) for count in layout.grid.tokens_shape)
        places = layout.shards.split(torch.cartesian_prod(*axes), layout.mesh, dim=0)
        text = streams["text"].expand(layout.grid.shape[0], -1, -1)
        return ToyPass(layout, text.to(like), places.to(like))

    def forward(self, tokens: torch.Tensor, step: Step, inputs: ToyPass) -> torch.Tensor:
        time = self.time(step.timestep.to(inputs.text)[None] / 1000)
        values = self.embed(tokens.to(inputs.text)) + torch.sin(self.place(inputs.places)) + time
        (values,) = self.run_blocks(list(self.blocks), [values], inputs)
        velocity: torch.Tensor = self.head(values)
        return velocity
