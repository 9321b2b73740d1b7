"""Process groups by name. The one module that uses private names of torch.distributed."""

from __future__ import annotations

import torch.distributed as dist
from torch.distributed.distributed_c10d import _resolve_process_group


def group_of(name: str) -> dist.ProcessGroup:
    """The process group of this name (``ProcessGroup.group_name``), as torch's collectives find it.

    Raises:
        LookupError: This process has no such group.
    """
    group: dist.ProcessGroup = _resolve_process_group(name)  # type: ignore[arg-type]
    return group
