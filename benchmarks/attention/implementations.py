"""The table of contestants, and adapters for longtake and for libraries that render.

``prepare`` runs on every rank of a process group over all ranks. It returns a function of this
rank's q, k and v. Each library is called as its own code does, with its fastest local kernel on the
device.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed.device_mesh import init_device_mesh

from benchmarks.attention import training_peers
from benchmarks.attention.setting import Attention, Setting
from longtake.parallel import ParallelDims, TokenShards, usp_attention

Prepare = Callable[[Setting], Attention]
"""setting -> attention of one rank's shard."""

GIVEN = "given longtake's local kernel on CPUs, where it has none that is exact and has a gradient"
ALIASED = f"{GIVEN}; its gradients are wrong in float32, where its sums alias the kernel's buffers"


@dataclass(frozen=True)
class Implementation:
    """One way to compute attention across ranks.

    Args:
        package: Name of the distribution on PyPI.
        method: Label of the method.
        prepare: Function that creates the attention function, called on every rank.
        family: What it is compared with: "one rank", "ulysses" or "ring".
        zigzag: Whether its ranks hold their tokens in zigzag under a causal mask.
        exact: Whether the result is attention over the whole sequence.
        note: Footnote of the table.
    """

    package: str
    method: str
    prepare: Prepare
    family: Literal["one rank", "ulysses", "ring"]
    zigzag: bool = False
    exact: bool = True
    note: str = ""

    @property
    def name(self) -> str:
        """Label in tables."""
        return f"{self.package} {self.method}"


def _longtake(axis: str, setting: Setting) -> Attention:
    world_size = dist.get_world_size()
    dims = ParallelDims(**{f"{axis}_degree": world_size})
    mesh = dims.build_mesh(setting.device_type)
    shards = setting.shards(world_size, zigzag=axis == "ring")
    return lambda q, k, v: usp_attention(q, k, v, mesh=mesh, shards=shards, causal=setting.causal)


def _no_exchange(setting: Setting) -> Attention:
    """A rank's work without communication: as many tokens as all ranks hold, some of the heads.

    All ranks compute at the same time, so this is the lower bound for this machine.
    """
    world_size = dist.get_world_size()

    def share(tensor: torch.Tensor) -> torch.Tensor:
        own = tensor[:, :, : -(-tensor.shape[2] // world_size)]
        return torch.cat([own] * world_size, dim=1)

    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        shards = TokenShards.even(q.shape[1] * world_size, ParallelDims())
        out = usp_attention(
            share(q), share(k), share(v), mesh=None, shards=shards, causal=setting.causal
        )
        return torch.cat(out.chunk(world_size, dim=1), dim=2)[:, :, : q.shape[2]]

    return attention


def _para_attn(method: str, setting: Setting) -> Attention:
    from para_attn import para_attn_interface

    function = getattr(para_attn_interface, f"{method}_attn_func")
    if method == "ulysses" and setting.shape.grouped:
        local = partial(F.scaled_dot_product_attention, enable_gqa=True)
        function = partial(function, attn_func=local)

    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
        out: torch.Tensor = function(q, k, v, is_causal=setting.causal, mesh=dist.group.WORLD)
        return out.transpose(1, 2)

    return attention


def _cache_dit(method: str, setting: Setting) -> Attention:
    from cache_dit.attention.backends.native import _native_attention
    from cache_dit.distributed.core._modeling_parallel import _ContextParallelConfig

    config = _ContextParallelConfig(**{f"{method}_degree": dist.get_world_size()})
    set_up_config(config, setting.device_type)
    return lambda q, k, v: _native_attention(
        q, k, v, is_causal=setting.causal, enable_gqa=setting.shape.grouped, _cp_config=config
    )


def _diffusers(method: str, setting: Setting) -> Attention:
    from diffusers import ContextParallelConfig
    from diffusers.models._modeling_parallel import ParallelConfig
    from diffusers.models.attention_dispatch import dispatch_attention_fn

    context = ContextParallelConfig(**{f"{method}_degree": dist.get_world_size()})
    config = ParallelConfig(context_parallel_config=context)
    set_up_config(config, setting.device_type)
    return lambda q, k, v: dispatch_attention_fn(
        q,
        k,
        v,
        is_causal=setting.causal,
        enable_gqa=setting.shape.grouped,
        backend="native",
        parallel_config=config,
    )


def set_up_config(config: Any, device_type: str) -> None:
    """Set up a config as diffusers' and cache-dit's enable_parallelism does, also on CPUs."""
    mesh = init_device_mesh(
        device_type,
        config.context_parallel_config.mesh_shape,
        mesh_dim_names=config.context_parallel_config.mesh_dim_names,
    )
    device = torch.device(device_type, dist.get_rank()) if device_type == "cuda" else "cpu"
    config.setup(dist.get_rank(), dist.get_world_size(), torch.device(device), mesh=mesh)


_RINGMASTER = "axolotl-ringmaster"

IMPLEMENTATIONS = (
    Implementation("torch", "one rank", training_peers.torch_attention, "one rank"),
    Implementation("longtake", "one rank", partial(_longtake, "ulysses"), "one rank"),
    Implementation("longtake", "no exchange", _no_exchange, "ulysses", exact=False),
    Implementation("longtake", "ulysses", partial(_longtake, "ulysses"), "ulysses"),
    Implementation("longtake", "ring", partial(_longtake, "ring"), "ring", zigzag=True),
    Implementation("yunchang", "ulysses", training_peers.yunchang_ulysses, "ulysses", note=GIVEN),
    Implementation("yunchang", "ring", training_peers.yunchang_ring, "ring", note=ALIASED),
    Implementation(
        "yunchang", "zigzag", training_peers.yunchang_zigzag, "ring", zigzag=True, note=ALIASED
    ),
    Implementation("yunchang", "ring, own kernel", training_peers.yunchang_own_kernel, "ring"),
    Implementation(
        "torch",
        "context parallel",
        training_peers.torch_context_parallel,
        "ring",
        zigzag=True,
        note=GIVEN,
    ),
    Implementation(_RINGMASTER, "ulysses", training_peers.ringmaster_ulysses, "ulysses"),
    Implementation(_RINGMASTER, "ring", training_peers.ringmaster_ring, "ring"),
    Implementation(_RINGMASTER, "zigzag", training_peers.ringmaster_zigzag, "ring", zigzag=True),
    Implementation("para-attn", "ulysses", partial(_para_attn, "ulysses"), "ulysses"),
    Implementation("para-attn", "ring", partial(_para_attn, "ring"), "ring"),
    Implementation("cache-dit", "ulysses", partial(_cache_dit, "ulysses"), "ulysses"),
    Implementation("cache-dit", "ring", partial(_cache_dit, "ring"), "ring"),
    Implementation("diffusers", "ulysses", partial(_diffusers, "ulysses"), "ulysses"),
    Implementation("diffusers", "ring", partial(_diffusers, "ring"), "ring"),
)

BY_NAME = {each.name: each for each in IMPLEMENTATIONS}

# No library may download kernels or weights.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
