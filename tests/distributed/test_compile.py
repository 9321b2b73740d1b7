"""A compiled transformer across ranks equals the eager one; attention is one opaque operator."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from longtake.parallel import ParallelDims, TokenShards, usp_attention
from tests.layouts import layout_name
from tests.ranks import RankGroups, mesh_of, random_tensors

NUM_TOKENS, NUM_HEADS, NUM_KV_HEADS, HEAD_SIZE = 13, 6, 2, 4
WIDTH = NUM_HEADS * HEAD_SIZE


class Block(nn.Module):
    """A causal transformer block of one rank's tokens."""

    def __init__(self, mesh: DeviceMesh | None, shards: TokenShards) -> None:
        super().__init__()
        self.mesh, self.shards = mesh, shards
        self.qkv = nn.Linear(WIDTH, WIDTH + 2 * NUM_KV_HEADS * HEAD_SIZE)
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[B, s, WIDTH]`` to the same shape."""
        heads = self.qkv(x).unflatten(2, (-1, HEAD_SIZE))
        q, k, v = heads.split([NUM_HEADS, NUM_KV_HEADS, NUM_KV_HEADS], dim=2)
        attended = usp_attention(q, k, v, mesh=self.mesh, shards=self.shards, causal=True)
        out: torch.Tensor = x + self.out(torch.nn.functional.gelu(attended.flatten(2)))
        return out


def check_compiled(dims: ParallelDims) -> list[tuple[str, bool]]:
    """On one rank: compare a compiled model's output and gradients with the eager one's.

    Returns:
        Our operators in the graphs, and whether they keep tensors for a backward pass.
    """
    mesh = mesh_of(dims)
    shards = TokenShards.zigzag(NUM_TOKENS, dims)
    torch.manual_seed(0)
    model = Block(mesh, shards)
    positions = TokenShards.zigzag(NUM_TOKENS, dims).positions(mesh)
    x = random_tensors(1, [(2, NUM_TOKENS, WIDTH)])[0][:, positions]
    operators: list[tuple[str, bool]] = []

    def compiler(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> object:
        nodes = [node for node in graph.graph.nodes if "usp" in str(node)]
        operators.extend((str(node.target), node.args[-1]) for node in nodes)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend=compiler)
    results, weights = [], list(model.parameters())
    for run in (compiled, model):  # compiled first: the shards have computed nothing yet
        out = run(x)
        results.append([out.detach(), *torch.autograd.grad(out.square().sum(), weights)])
        with torch.no_grad():
            results[-1].append(run(x))
        assert results[-1][-1].grad_fn is None
    for same, eager in zip(*results, strict=True):
        torch.testing.assert_close(same, eager, rtol=0, atol=1e-5)
    return operators


@pytest.mark.parametrize(
    "dims",
    [
        ParallelDims(),
        ParallelDims(ulysses_degree=2),
        ParallelDims(ring_degree=2),
        ParallelDims(ring_degree=2, ulysses_degree=2),
    ],
    ids=layout_name,
)
def test_a_compiled_transformer_equals_the_eager_one(ranks: RankGroups, dims: ParallelDims) -> None:
    for operators in ranks.run(dims.world_size, check_compiled, dims):
        assert operators == [
            ("longtake.usp_attention.default", True),
            ("longtake.usp_attention.default", False),  # without gradients
        ]
