"""The profile of this machine, from what its driver reports."""

from __future__ import annotations

import logging
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from longtake.engine.planning import hardware, host
from longtake.engine.planning.hardware import hardware_here
from longtake.engine.planning.network import Network
from longtake.engine.planning.topology import Gpu, Link, LinkKind, Topology


def machine(name: str, kinds: dict[tuple[int, int], LinkKind], count: int) -> Topology:
    """GPUs of one kind with these links."""
    gpus = tuple(
        Gpu(index, name, f"GPU-{index}", 80 * 2**30 - index, 2**30, (9, 0), 32e9)
        for index in range(count)
    )
    return Topology(gpus=gpus, links={pair: Link(kind) for pair, kind in kinds.items()})


def two_sockets(count: int) -> dict[tuple[int, int], LinkKind]:
    """Pairs on a switch, four GPUs per socket."""

    def kind(one: int, other: int) -> LinkKind:
        if one // 2 == other // 2:
            return "pcie-switch"
        return "host-bridge" if one // 4 == other // 4 else "socket"

    return {pair: kind(*pair) for pair in combinations(range(count), 2)}


def set_topology(monkeypatch: pytest.MonkeyPatch, found: Topology) -> None:
    monkeypatch.setattr(hardware, "topology", lambda: found)


def test_the_profile_without_gpus_is_a_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    set_topology(monkeypatch, Topology(reason="there is no NVIDIA driver"))
    found = hardware_here()
    assert found.device == "cpu"
    assert found.memory_bytes is not None and found.memory_bytes.value > 2**30


def test_device_type_cpu_ignores_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    set_topology(monkeypatch, machine("NVIDIA H100 80GB HBM3", {}, 1))
    assert hardware_here("cpu").device == "cpu"


def test_gpus_on_a_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    all_pairs: dict[tuple[int, int], LinkKind] = dict.fromkeys(combinations(range(4), 2), "nvlink")
    set_topology(monkeypatch, machine("NVIDIA H100 80GB HBM3", all_pairs, 4))
    found = hardware_here()
    assert found.description.startswith("NVIDIA H100")
    assert found.devices_per_node == 4
    assert [link.spans for link in found.links] == [4, None]
    assert found.memory_bytes is not None and found.memory_bytes.value == 80 * 2**30 - 3


def test_gpus_on_pcie(monkeypatch: pytest.MonkeyPatch) -> None:
    set_topology(monkeypatch, machine("NVIDIA L40", two_sockets(8), 8))
    found = hardware_here()
    assert [(link.spans, link.shared_by) for link in found.links] == [
        (2, 1),
        (4, 2),
        (8, 4),
        (None, 8),
    ]
    assert found.links[0].bytes_per_s.value == pytest.approx(0.8 * 32e9)
    near, far = (Network(found).seconds([(0, other, 1e9)]) for other in (1, 7))
    assert near < far


def test_one_socket_has_fewer_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds: dict[tuple[int, int], LinkKind] = dict.fromkeys(combinations(range(4), 2), "host-bridge")
    set_topology(monkeypatch, machine("NVIDIA GeForce RTX 4090", kinds, 4))
    found = hardware_here()
    assert [(link.spans, link.shared_by) for link in found.links] == [(4, 1), (None, 4)]


def test_an_unknown_gpu_gets_a_fallback_and_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    set_topology(monkeypatch, machine("NVIDIA GB999", {}, 1))
    with caplog.at_level(logging.WARNING):
        found = hardware_here()
    assert found.description.startswith("NVIDIA H100")
    assert "there is no profile of NVIDIA GB999: plans use that of h100" in caplog.text


def test_the_memory_of_the_host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is free of the machine's or, if less, of the container's; and what WSL lets a GPU pin of
    all of it."""
    set_topology(monkeypatch, machine("NVIDIA L40", {}, 1))
    monkeypatch.setattr(
        psutil, "virtual_memory", lambda: SimpleNamespace(total=64 * 2**30, available=48 * 2**30)
    )
    monkeypatch.setattr(host, "_CGROUP", tmp_path)
    found = hardware_here()
    assert found.host_memory_bytes is not None and found.host_memory_bytes.value == 48 * 2**30
    assert found.pinned_bytes is None
    for limit, usable in (("max", 64), (str(16 * 2**30), 16), (str(128 * 2**30), 64)):
        (tmp_path / "memory.max").write_text(f"{limit}\n")
        assert hardware_here().host_memory_bytes is not None
        assert host.host_memory().value == usable * 2**30
        assert hardware_here("cpu").memory_bytes == host.host_memory()
    monkeypatch.setattr("platform.release", lambda: "5.15.167.4-microsoft-standard-WSL2")
    pinned = hardware_here().pinned_bytes
    assert pinned is not None and pinned.value == 32 * 2**30


def test_unified_memory_is_the_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    set_topology(monkeypatch, machine("NVIDIA GB10", {}, 1))
    found = hardware_here()
    assert found.unified_memory and found.memory_bytes == host.host_memory()
