"""Adapters for the sequence-parallel attention of longtake and its peers.

``prepare`` runs on every rank of a process group over all ranks. It returns a function of this
rank's ``q, k, v [B, s, N, H]`` that returns this rank's ``out [B, s, N, H]``. Each library is
called as its own code does, with its fastest local kernel on the device.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from longtake.parallel import ParallelDims, TokenShards, usp_attention

Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
Prepare = Callable[[str, int], Attention]
"""(device type, number of tokens of the whole sequence) -> attention of one rank's shard."""


@dataclass(frozen=True)
class Implementation:
    """One way to compute attention across ranks.

    Args:
        package: Name of the distribution on PyPI.
        method: "one rank", "no exchange", "ulysses" or "ring".
        prepare: Function that creates the attention function, called on every rank.
        exact: Whether the result is attention over the whole sequence.
    """

    package: str
    method: str
    prepare: Prepare
    exact: bool = True

    @property
    def name(self) -> str:
        """Label in tables."""
        return f"{self.package} {self.method}"


def _longtake(method: str) -> Prepare:
    def prepare(device_type: str, num_tokens: int) -> Attention:
        world_size = dist.get_world_size()
        dims = ParallelDims(
            ring_degree=world_size if method == "ring" else 1,
            ulysses_degree=1 if method == "ring" else world_size,
        )
        mesh, shards = dims.build_mesh(device_type), TokenShards.even(num_tokens, dims)
        return lambda q, k, v: usp_attention(q, k, v, mesh=mesh, shards=shards)

    return prepare


def _no_exchange(device_type: str, num_tokens: int) -> Attention:
    """A rank's work without communication: all tokens, its share of the heads.

    All ranks compute at the same time, so this is the lower bound for this machine.
    """
    mesh = ParallelDims(cfg_degree=dist.get_world_size()).build_mesh(device_type)
    shards = TokenShards.even(num_tokens, ParallelDims())
    inputs: list[torch.Tensor] = []

    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        if not inputs:
            num_heads = -(-q.shape[2] // dist.get_world_size())
            shape = (q.shape[0], num_tokens, num_heads, q.shape[3])
            inputs.extend(torch.randn(shape, dtype=q.dtype, device=q.device) for _ in range(3))
        q, k, v = inputs
        return usp_attention(q, k, v, mesh=mesh, shards=shards)

    return attention


def _yunchang_ulysses(device_type: str, num_tokens: int) -> Attention:
    from yunchang import UlyssesAttention
    from yunchang.kernels import AttnType
    from yunchang.kernels.attention import pytorch_attn_forward

    attention = UlyssesAttention(dist.group.WORLD, attn_type=AttnType.TORCH_MATH)
    # yunchang ignores attn_type and uses its CUDA kernel; its math kernel takes fewer arguments
    attention.attn_fn = lambda q, k, v, causal, **_: pytorch_attn_forward(
        q, k, v, causal=causal, op_type="flash" if device_type == "cuda" else "math"
    )
    return lambda q, k, v: attention(q, k, v, causal=False)


def _yunchang_ring(device_type: str, num_tokens: int) -> Attention:
    from yunchang import LongContextAttention, set_seq_parallel_pg
    from yunchang.kernels import AttnType

    set_seq_parallel_pg(1, dist.get_world_size(), dist.get_rank(), dist.get_world_size())
    kind = AttnType.TORCH_FLASH if device_type == "cuda" else AttnType.TORCH_MATH
    attention = LongContextAttention(ring_impl_type="basic", attn_type=kind)
    return lambda q, k, v: attention(q, k, v, causal=False)


def _para_attn(method: str) -> Prepare:
    def prepare(device_type: str, num_tokens: int) -> Attention:
        from para_attn import para_attn_interface

        function = getattr(para_attn_interface, f"{method}_attn_func")
        group = dist.group.WORLD

        def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
            out: torch.Tensor = function(q, k, v, mesh=group)
            return out.transpose(1, 2)

        return attention

    return prepare


def _cache_dit(method: str) -> Prepare:
    def prepare(device_type: str, num_tokens: int) -> Attention:
        from cache_dit.attention.backends.native import _native_attention
        from cache_dit.distributed.core._modeling_parallel import _ContextParallelConfig

        config = _ContextParallelConfig(**{f"{method}_degree": dist.get_world_size()})
        set_up_config(config, device_type)
        return lambda q, k, v: _native_attention(q, k, v, _cp_config=config)

    return prepare


def _diffusers(method: str) -> Prepare:
    def prepare(device_type: str, num_tokens: int) -> Attention:
        from diffusers import ContextParallelConfig
        from diffusers.models._modeling_parallel import ParallelConfig
        from diffusers.models.attention_dispatch import dispatch_attention_fn

        context = ContextParallelConfig(**{f"{method}_degree": dist.get_world_size()})
        config = ParallelConfig(context_parallel_config=context)
        set_up_config(config, device_type)
        return lambda q, k, v: dispatch_attention_fn(
            q, k, v, backend="native", parallel_config=config
        )

    return prepare


def set_up_config(config: Any, device_type: str) -> None:
    """Set up a config as diffusers' and cache-dit's enable_parallelism does, also on CPUs."""
    mesh = init_device_mesh(
        device_type,
        config.context_parallel_config.mesh_shape,
        mesh_dim_names=config.context_parallel_config.mesh_dim_names,
    )
    device = torch.device(device_type, dist.get_rank()) if device_type == "cuda" else "cpu"
    config.setup(dist.get_rank(), dist.get_world_size(), torch.device(device), mesh=mesh)


def _ringmaster_ulysses(device_type: str, num_tokens: int) -> Attention:
    from ringmaster.config import RingmasterConfig
    from ringmaster.runtime import CPRuntime, set_runtime
    from ringmaster.strategies.ulysses import make_ulysses_attention

    size = dist.get_world_size()
    config = RingmasterConfig(size=size, ulysses_size=size, ring_size=1)
    set_runtime(CPRuntime(config=config, ulysses_group=dist.group.WORLD, cp_group=dist.group.WORLD))
    forward, module = make_ulysses_attention("sdpa"), torch.nn.Module()

    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
        out: torch.Tensor = forward(module, q, k, v, None, is_causal=False)[0]
        return out

    return attention


def _ringmaster_ring(device_type: str, num_tokens: int) -> Attention:
    from ringmaster.config import RotateMethod
    from ringmaster.ring import ring_attention

    on_gpu = device_type == "cuda"

    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
        out: torch.Tensor = ring_attention(
            q,
            k,
            v,
            group=dist.group.WORLD,
            causal=False,
            scaling=None,
            dropout=0.0,
            provider="torch_native" if on_gpu else "math",
            rotate_method=RotateMethod.ALLGATHER if on_gpu else RotateMethod.ALLTOALL,
            attn_implementation="sdpa" if on_gpu else "math",
        )
        return out

    return attention


IMPLEMENTATIONS = (
    Implementation("longtake", "one rank", _longtake("ulysses")),
    Implementation("longtake", "no exchange", _no_exchange, exact=False),
    Implementation("longtake", "ulysses", _longtake("ulysses")),
    Implementation("longtake", "ring", _longtake("ring")),
    Implementation("yunchang", "ulysses", _yunchang_ulysses),
    Implementation("yunchang", "ring", _yunchang_ring),
    Implementation("para-attn", "ulysses", _para_attn("ulysses")),
    Implementation("para-attn", "ring", _para_attn("ring")),
    Implementation("cache-dit", "ulysses", _cache_dit("ulysses")),
    Implementation("cache-dit", "ring", _cache_dit("ring")),
    Implementation("diffusers", "ulysses", _diffusers("ulysses")),
    Implementation("diffusers", "ring", _diffusers("ring")),
    Implementation("axolotl-ringmaster", "ulysses", _ringmaster_ulysses),
    Implementation("axolotl-ringmaster", "ring", _ringmaster_ring),
)

BY_NAME = {each.name: each for each in IMPLEMENTATIONS}

# No library may download kernels or weights.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
