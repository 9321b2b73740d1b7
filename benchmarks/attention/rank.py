"""What a rank does in the attention benchmark."""

from __future__ import annotations

import torch
import torch.distributed as dist

from benchmarks.attention.implementations import BY_NAME
from benchmarks.attention.reference import Reference
from benchmarks.attention.setting import Setting
from benchmarks.contest import Contestant, Prepared, rank_device
from benchmarks.memory import peak_memory
from benchmarks.traffic import TrafficMeter


@torch.inference_mode(False)  # tensors of inference mode have no gradients
def prepare(contestant: Contestant, setting: Setting, reference: Reference) -> Prepared:
    """Create the inputs and measure error, traffic and memory of a call.

    Returns:
        A call, and its figures: ``error`` and ``gradient_error``, the largest differences from
        attention in float64; ``bytes_sent``; ``collectives``; ``peak_bytes``.
    """
    implementation = BY_NAME[contestant.name]
    shards = setting.shards(dist.get_world_size(), zigzag=implementation.zigzag)
    ranges = shards.ranges[dist.get_rank()]
    own = torch.cat([torch.arange(span.start, span.stop) for span in ranges])
    device = rank_device(setting.device_type)
    q, k, v, grad_out = (
        tensor[:, own].to(device) for tensor in setting.shape.tensors(setting.dtype)
    )
    attention = implementation.prepare(setting)

    def turn() -> tuple[torch.Tensor, ...]:
        if not setting.train:
            with torch.inference_mode():
                return (attention(q, k, v),)
        with torch.inference_mode(False):
            leaves = [tensor.detach().requires_grad_() for tensor in (q, k, v)]
            out = attention(*leaves)
            return out.detach(), *torch.autograd.grad(out, leaves, grad_out)

    with TrafficMeter() as meter:  # the first call includes lazy loading and persistent buffers
        computed = turn()
    errors = reference.errors(own, computed) if implementation.exact else [0.0]
    del computed
    with peak_memory(setting.device_type) as peak_bytes:
        turn()
    return turn, {
        "error": errors[0],
        "gradient_error": max(errors[1:], default=0.0),
        "bytes_sent": meter.bytes_sent,
        "collectives": meter.collectives,
        "peak_bytes": peak_bytes(),
    }
