"""The process group of all ranks, however they were started."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from longtake.errors import EngineError, one_line

_CONTROL_TIMEOUT = timedelta(days=1)


@dataclass(frozen=True)
class Rendezvous:
    """A rank, and where it meets the others.

    Attributes:
        rank: This process's rank.
        world_size: Number of ranks.
        address: ``host:port`` of the store, for error messages.
        store: Store that all ranks share; None uses the one that torchrun names.
    """

    rank: int
    world_size: int
    address: str
    store: dist.Store | None = None


def join_group(rendezvous: Rendezvous, device: torch.device, timeout_s: float) -> dist.ProcessGroup:
    """Create the process group of all ranks, for tensors on the CPU and on the device.

    Args:
        rendezvous: Where the ranks meet.
        device: This rank's device; a GPU becomes the current one.
        timeout_s: Timeout of joining and of every collective, in seconds.

    Raises:
        EngineError: The ranks did not meet.
    """
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(device)
    store = rendezvous.store
    try:
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
            store=store,
            rank=rendezvous.rank if store else -1,
            world_size=rendezvous.world_size if store else -1,
            timeout=timedelta(seconds=timeout_s),
            device_id=device if on_gpu else None,
        )
    except (RuntimeError, ValueError) as error:
        raise EngineError(
            f"rank {rendezvous.rank} of {rendezvous.world_size} cannot meet the others at "
            f"{rendezvous.address}: check that the port is free and that all ranks were started "
            f"({one_line(error)[:200]})"
        ) from error
    group = dist.group.WORLD
    assert group is not None
    return group


def leave_group() -> None:
    """Destroy the process group, on all ranks together."""
    dist.barrier()  # without it, gloo ranks abort at exit now and then
    dist.destroy_process_group()


def control_group() -> dist.ProcessGroup:
    """A group for waiting on a rank that computes or writes; created by all ranks together.

    Its timeout never matters: deadlines watch the working ranks, and a dead rank is noticed at
    once.
    """
    group: dist.ProcessGroup = dist.new_group(backend="gloo", timeout=_CONTROL_TIMEOUT)
    return group
