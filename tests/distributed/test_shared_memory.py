"""The ranks of a host share one copy of weights; what a host lacks is an error on all ranks."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from longtake.errors import ModelError
from longtake.parallel import World
from longtake.pipelines.loading.tensor_source import SafetensorsSource
from longtake.pipelines.streaming import shared_memory
from longtake.pipelines.streaming.layout import BlockLayout
from longtake.pipelines.streaming.shared_memory import SharedMemory
from longtake.pipelines.streaming.stores import FileStore, HostStore
from tests import loading
from tests.ranks import RankGroups
from tests.rendering import ALONE, world

NUM_BYTES = 8 * 2**20


def on_hosts(ranks_per_host: int) -> World:
    """On a rank: a world with that many ranks on each host."""
    own = None
    for first in range(0, world().size, ranks_per_host):
        ranks = list(range(first, min(first + ranks_per_host, world().size)))
        group = dist.new_group(ranks)
        own = group if world().rank in ranks else own
    return replace(world(), host_group=own)


def proportional_bytes() -> int:
    """Shared memory of this process, in which each page counts once for all that map it."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss_Shmem:")) * 1024


def write_and_read(ranks_per_host: int) -> tuple[list[int], int, int]:
    """On a rank: the values that the ranks of its host wrote, its share of the memory, and the
    number of files that stay open."""
    ranks, before = on_hosts(ranks_per_host), proportional_bytes()
    opened = len(os.listdir("/proc/self/fd"))
    memory = SharedMemory.allocate(NUM_BYTES, ranks)
    own = ranks.host_ranks.index(ranks.rank)
    memory.values[own::ranks_per_host] = 10 * ranks.rank + 1
    memory.pin(ranks)
    assert not memory.is_pinned
    seen = sorted(set(memory.values.tolist()[: 2 * ranks_per_host]))
    held = proportional_bytes() - before
    still_open = len(os.listdir("/proc/self/fd")) - opened
    ranks.gather_json(None)  # no rank unmaps it before all have counted
    return seen, held, still_open


@pytest.mark.parametrize(("size", "ranks_per_host"), [(3, 3), (4, 2)])
def test_one_copy_a_host(ranks: RankGroups, size: int, ranks_per_host: int) -> None:
    found = ranks.run(size, write_and_read, ranks_per_host)
    for rank, (seen, _, still_open) in enumerate(found):
        first = rank // ranks_per_host * ranks_per_host
        assert seen == [10 * each + 1 for each in range(first, first + ranks_per_host)]
        assert still_open == 1  # Python's map keeps a descriptor
    hosts = size // ranks_per_host
    assert sum(held for _, held, _ in found) == pytest.approx(hosts * NUM_BYTES, rel=0.05)


def refused(fault: str, num_bytes: int) -> str:
    """On a rank: the refusal, if something fails on one of two hosts."""
    ranks, faulty = on_hosts(2), world().rank == 2
    with pytest.MonkeyPatch.context() as patch:
        if fault == "memory" and faulty:
            patch.setattr(shared_memory, "free_bytes", lambda device: num_bytes)
        if fault == "memfd" and faulty:
            patch.delattr(os, "memfd_create")
        if fault == "open" and world().rank == 3:
            patch.setattr(os, "open", _denied)
        if fault == "foreign" and world().rank == 3:
            patch.setattr(os, "readlink", lambda path: "/home/somebody/file")
        try:
            SharedMemory.allocate(num_bytes, ranks)
        except ModelError as error:
            return str(error)
    return ""


def _denied(*arguments: object, **options: object) -> int:
    raise PermissionError("not in this container")


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        ("memory", "0.0 GiB are free on this host, of which 0.5 GiB must stay so; try --weights"),
        ("memfd", "memfd_create"),
        ("open", "rank 3 cannot map the weights in the memory of rank 2: not in this container"),
        ("foreign", "is another file: the ranks are in different containers"),
    ],
)
def test_a_fault_on_one_host_is_an_error_on_all_ranks(
    ranks: RankGroups, fault: str, text: str
) -> None:
    for message in ranks.run(4, refused, fault, NUM_BYTES):
        assert text in message and "--weights disk" in message and "\n" not in message


def read_with_a_fault(files: list[Path]) -> str:
    """On a rank: the refusal, if rank 1 cannot read its blocks."""
    source = SafetensorsSource(files)
    states = [{name: torch.empty(each.shape)} for name, each in source.tensors.items()]
    names = [{name: name for name in state} for state in states]
    store = FileStore([BlockLayout(state) for state in states], source, names)
    with pytest.MonkeyPatch.context() as patch:
        if world().rank == 1:
            patch.setattr(os, "preadv", _denied)
        try:
            HostStore(store, world())
        except ModelError as error:
            return str(error)
    return ""


def test_a_block_that_one_rank_cannot_read_is_an_error_on_all(
    ranks: RankGroups, tmp_path: Path
) -> None:
    files = loading.save_weights(tmp_path)
    for message in ranks.run(3, read_with_a_fault, files):
        assert "cannot be read from" in message


def test_one_rank_needs_no_sharing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create")
    memory = SharedMemory.allocate(1000, ALONE)
    memory.pin(ALONE)
    assert memory.values.shape == (1000,) and memory.values.dtype == torch.uint8
    assert SharedMemory.allocate(0, ALONE).values.numel() == 0
