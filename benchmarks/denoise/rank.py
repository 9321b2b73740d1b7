"""What a rank does in the denoising benchmark, for any family and package."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist

from benchmarks.attention.implementations import set_up_config
from benchmarks.contest import Contestant, Prepared, rank_device
from benchmarks.denoise.hunyuan_video import HunyuanVideoInputs
from benchmarks.denoise.inputs import Inputs, Step, longtake_step
from benchmarks.denoise.wan import WanInputs
from benchmarks.memory import peak_memory
from benchmarks.traffic import TrafficMeter
from longtake.parallel import ParallelDims, TokenShards

FAMILIES: dict[str, type[Inputs]] = {"hunyuan_video": HunyuanVideoInputs, "wan": WanInputs}

TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 0.25}
"""Largest difference of a velocity from that of diffusers on one rank, in the same dtype.

In bfloat16, diffusers' velocity is itself 0.10 away from that in float32, of 3.0 (Wan).
"""


def diffusers_step(inputs: Inputs, degrees: dict[str, int]) -> Step:
    """A step in diffusers, on several ranks with its context parallelism.

    Its own set-up counts the accelerators of the host, so it would divide by zero on a CPU.
    """
    if degrees:
        from diffusers import ContextParallelConfig
        from diffusers.models._modeling_parallel import ParallelConfig

        config = ParallelConfig(context_parallel_config=ContextParallelConfig(**degrees))
        set_up_config(config, inputs.latents.device.type)
        inputs.model._resolve_parallel_config = lambda ready: ready
        inputs.model.enable_parallelism(config=config)
    return inputs.reference_step()


def cache_dit_step(inputs: Inputs, degrees: dict[str, int]) -> Step:
    """A step with cache-dit's context parallelism."""
    from cache_dit.distributed import ParallelismConfig
    from cache_dit.distributed.dispatch import enable_parallelism

    ulysses, ring = degrees.get("ulysses_degree", 1), degrees.get("ring_degree", 1)
    enable_parallelism(
        inputs.model,
        ParallelismConfig(
            ulysses_size=ulysses if ulysses > 1 else None, ring_size=ring if ring > 1 else None
        ),
    )
    return inputs.reference_step()


STEPS: dict[str, Callable[[Inputs, dict[str, int]], Step]] = {
    "longtake": longtake_step,
    "diffusers": diffusers_step,
    "cache-dit": cache_dit_step,
}


@torch.inference_mode()
def expected_velocity(family: str, dtype: torch.dtype, device_type: str) -> torch.Tensor:
    """The velocity of the first step in diffusers, ``[1, tokens, values]`` on the CPU."""
    inputs = FAMILIES[family].make(dtype, torch.device(device_type))
    return inputs.reference_step()().cpu()


def prepare(
    contestant: Contestant,
    family: str,
    dtype: torch.dtype,
    device_type: str,
    expected: torch.Tensor,
) -> Prepared:
    """Create the model, check the first velocity, and measure traffic and memory of a step.

    Args:
        contestant: Package and layout.
        family: A name in :data:`FAMILIES`.
        dtype: Dtype of the weights.
        device_type: "cuda" or "cpu".
        expected: Result of :func:`expected_velocity`.

    Returns:
        A step, and its figures: ``error``, the largest difference from diffusers' velocity on one
        rank; ``bytes_sent``; ``collectives``; ``peak_bytes``; ``parameters``.

    Raises:
        ValueError: The error is above the tolerance of the dtype.
    """
    inputs = FAMILIES[family].make(dtype, rank_device(device_type))
    step = STEPS[contestant.package](inputs, contestant.degrees)
    with TrafficMeter() as meter:  # the first step includes lazy loading and persistent buffers
        velocity = step()
    with peak_memory(device_type) as peak_bytes:
        step()
    if velocity.shape != expected.shape:
        expected = expected[:, _own_tokens(inputs, contestant)]
    error = (velocity.cpu() - expected).abs().max().item()
    if not error <= TOLERANCES[dtype]:
        raise ValueError(f"the velocity is off by {error:.1e}, tolerance {TOLERANCES[dtype]:.0e}")
    return step, {
        "error": error,
        "bytes_sent": meter.bytes_sent,
        "collectives": meter.collectives,
        "peak_bytes": peak_bytes(),
        "parameters": sum(weights.numel() for weights in inputs.model.parameters()),
    }


def _own_tokens(inputs: Inputs, contestant: Contestant) -> slice:
    """The tokens of this rank in longtake's layout."""
    dims = ParallelDims(**contestant.degrees)
    shards = TokenShards.even(inputs.grid.num_tokens, dims)
    (own,) = shards.ranges[dist.get_rank() % dims.sequence_degree]
    return slice(own.start, own.stop)
