"""The private names of torch are where this package looks for them, and do what it expects."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from longtake.parallel.torch_private import group_of, is_transformed


def test_a_group_is_found_by_its_name_while_it_exists(tmp_path: Path) -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        group = dist.new_group([0])
        assert group_of(group.group_name) is group
    finally:
        dist.destroy_process_group()
    with pytest.raises(RuntimeError, match="Could not resolve"):
        group_of(group.group_name)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is:DeprecationWarning")
def test_transforms_are_noticed() -> None:
    seen = []

    def notice(x: torch.Tensor) -> torch.Tensor:
        seen.append(is_transformed())
        return x * 1

    x = torch.ones(())
    notice(x)
    torch.func.grad(notice)(x)
    torch.func.jvp(notice, (x,), (x,))
    torch.vmap(notice)(x.unsqueeze(0))
    notice(x)
    assert seen == [False, True, True, True, False]
