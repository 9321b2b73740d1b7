"""The private names of torch that this package uses, all of them."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import _resolve_process_group


def group_of(name: str) -> dist.ProcessGroup:
    """The process group of this name (``ProcessGroup.group_name``), as torch's collectives find it.

    Raises:
        RuntimeError: This process has no such group.
    """
    group: dist.ProcessGroup = _resolve_process_group(name)  # type: ignore[arg-type]
    return group


def is_transformed() -> bool:
    """Whether this code runs inside ``torch.vmap`` or a transform of ``torch.func``."""
    return torch._C._are_functorch_transforms_active()
