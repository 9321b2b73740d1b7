"""The topology that a simulated driver reports."""

from __future__ import annotations

import importlib
import subprocess
import sys
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from longtake.engine.planning.topology import Topology, gpus, topology

pynvml: Any = importlib.import_module("pynvml")

PCIE_SWITCH, HOST_BRIDGE, SOCKET = 20, 30, 50


@dataclass
class Machine:
    """GPUs as NVML reports them.

    Args:
        count: Number of GPUs.
        nvlinks: Bus ids at the other ends of a GPU's active NVLinks, by GPU.
        switched: Whether NVLink reaches every GPU through switches.
        levels: Level of the common PCIe ancestor, by pair; the host bridge by default.
        no_peers: Pairs without access to each other's memory.
        lost: Whether reading a GPU's name fails.
    """

    count: int = 2
    nvlinks: dict[int, list[str]] = field(default_factory=dict)
    switched: bool = False
    levels: dict[tuple[int, int], int] = field(default_factory=dict)
    no_peers: tuple[tuple[int, int], ...] = ()
    lost: bool = False

    def name_of(self, gpu: int) -> str:
        if self.lost:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
        return "NVIDIA Model"

    def link_end(self, gpu: int, link: int) -> str:
        links = self.nvlinks.get(gpu, [])
        return links[link] if link < len(links) else unsupported()

    def p2p_status(self, one: int, other: int, capability: int) -> int:
        if capability == pynvml.NVML_P2P_CAPS_INDEX_NVLINK:
            supported = self.switched or f"bus {other}" in self.nvlinks.get(one, [])
        else:
            assert capability == pynvml.NVML_P2P_CAPS_INDEX_WRITE
            supported = (one, other) not in self.no_peers
        return int(pynvml.NVML_P2P_STATUS_OK if supported else pynvml.NVML_P2P_STATUS_NOT_SUPPORTED)


def unsupported(*arguments: Any) -> Any:
    raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)


def fake_pynvml(machine: Machine) -> ModuleType:
    """pynvml with its real names and errors, and a simulated machine's values."""
    nvml = ModuleType("pynvml")
    for name, value in vars(pynvml).items():
        if name.startswith("nvml") and callable(value):
            setattr(nvml, name, unsupported)
        elif name.startswith("NVML"):
            setattr(nvml, name, value)
    functions: dict[str, Any] = {
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlSystemGetDriverVersion": lambda: "580.1",
        "nvmlSystemGetCudaDriverVersion": lambda: 12080,
        "nvmlDeviceGetCount": lambda: machine.count,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetName": machine.name_of,
        "nvmlDeviceGetUUID": lambda gpu: f"GPU-{gpu}{gpu}-x",
        "nvmlDeviceGetMemoryInfo": lambda gpu: SimpleNamespace(total=80 * 2**30, free=2**30 * gpu),
        "nvmlDeviceGetCudaComputeCapability": lambda gpu: (9, 0),
        "nvmlDeviceGetMaxPcieLinkGeneration": lambda gpu: 4,
        "nvmlDeviceGetCurrPcieLinkWidth": lambda gpu: 16,
        "nvmlDeviceGetPciInfo": lambda gpu: SimpleNamespace(busId=f"bus {gpu}"),
        "nvmlDeviceGetNvLinkState": lambda gpu, link: int(bool(machine.link_end(gpu, link))),
        "nvmlDeviceGetNvLinkRemotePciInfo": lambda gpu, link: SimpleNamespace(
            busId=machine.link_end(gpu, link)
        ),
        "nvmlDeviceGetP2PStatus": machine.p2p_status,
        "nvmlDeviceGetTopologyCommonAncestor": lambda one, other: machine.levels.get(
            (one, other), HOST_BRIDGE
        ),
    }
    for name, function in functions.items():
        assert hasattr(nvml, name)
        setattr(nvml, name, function)
    return nvml


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Installs a machine's driver, and returns its module for tests to modify."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def install(machine: Machine) -> ModuleType:
        module = fake_pynvml(machine)
        monkeypatch.setitem(sys.modules, "pynvml", module)
        return module

    return install


def test_two_gpus_with_nvlink(driver: Any) -> None:
    driver(Machine(2, nvlinks={0: ["bus 1"] * 4, 1: ["bus 0"] * 4}))
    found = topology()
    assert (found.driver, found.cuda, found.reason, found.broken) == ("580.1", "12.8", "", False)
    assert [gpu.index for gpu in found.gpus] == [0, 1]
    second = found.gpus[1]
    assert (second.name, second.uuid) == ("NVIDIA Model", "GPU-11-x")
    assert (second.memory_bytes, second.free_bytes) == (80 * 2**30, 2**30)
    assert second.capability == (9, 0)
    assert second.pcie_bytes_per_s == pytest.approx(31.5e9, rel=0.01)
    link = found.link(1, 0)
    assert (link.kind, link.num_nvlinks, link.peer_access) == ("nvlink", 4, True)
    assert gpus() == found.gpus


def test_four_gpus_over_pcie(driver: Any) -> None:
    levels = {(0, 1): PCIE_SWITCH, (2, 3): HOST_BRIDGE}
    far = {pair: SOCKET for pair in ((0, 2), (0, 3), (1, 2), (1, 3))}
    driver(Machine(4, levels={**levels, **far}, no_peers=tuple(far)))
    links = topology().links
    kinds = {pair: link.kind for pair, link in links.items()}
    assert kinds == {(0, 1): "pcie-switch", (2, 3): "host-bridge", **dict.fromkeys(far, "socket")}
    assert {pair for pair, link in links.items() if not link.peer_access} == set(far)
    assert {link.num_nvlinks for link in links.values()} == {0}


def test_a_switch_links_every_pair(driver: Any) -> None:
    links = {gpu: ["a switch", "another"] * 9 for gpu in range(4)}
    driver(Machine(4, nvlinks=links, switched=True))
    found = topology().links
    assert len(found) == 6
    assert {(link.kind, link.num_nvlinks) for link in found.values()} == {("nvlink", 18)}


def test_nvlink_between_pairs(driver: Any) -> None:
    """Two NVLink bridges of two GPUs each; none between them."""
    ends = {0: ["bus 1"] * 2, 1: ["bus 0"] * 2, 2: ["bus 3"] * 2, 3: ["bus 2"] * 2}
    driver(Machine(4, nvlinks=ends))
    linked = {pair for pair, link in topology().links.items() if link.kind == "nvlink"}
    assert linked == {(0, 1), (2, 3)}


@pytest.mark.parametrize(
    ("selection", "uuids"),
    [
        ("1", ["GPU-11-x"]),
        ("3,0", ["GPU-33-x", "GPU-00-x"]),
        ("GPU-22, GPU-1", ["GPU-22-x", "GPU-11-x"]),
        ("1,9,0", ["GPU-11-x"]),  # as in CUDA, an invalid entry hides those after it
        ("2,-1", ["GPU-22-x"]),
        ("0,0", []),
        ("GPU-", []),  # a prefix of all
        ("", []),
        ("MIG-unknown", []),
    ],
)
def test_visible_devices(
    driver: Any, monkeypatch: pytest.MonkeyPatch, selection: str, uuids: list[str]
) -> None:
    driver(Machine(4, levels={(0, 3): SOCKET}))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", selection)
    found = topology()
    assert [gpu.uuid for gpu in found.gpus] == uuids
    assert [gpu.index for gpu in found.gpus] == list(range(len(uuids)))
    assert len(found.links) == len(uuids) * (len(uuids) - 1) // 2
    assert bool(found.reason) == (not uuids)
    if not uuids:
        assert found.reason == f"CUDA_VISIBLE_DEVICES={selection!r} shows no GPU"


def test_a_mig_device(driver: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    nvml: Any = driver(Machine(1))
    nvml.nvmlDeviceGetHandleByUUID = lambda uuid: {"MIG-a": 7}[uuid]
    nvml.nvmlDeviceGetUUID = lambda gpu: "MIG-a" if gpu == 7 else "GPU-00-x"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-a")
    assert [gpu.uuid for gpu in gpus()] == ["MIG-a"]


def test_unsupported_queries_are_omitted(driver: Any) -> None:
    nvml: Any = driver(Machine(2))
    for name in ("MemoryInfo", "P2PStatus", "TopologyCommonAncestor", "CurrPcieLinkWidth"):
        setattr(nvml, f"nvmlDeviceGet{name}", unsupported)
    found = topology()
    assert {(gpu.memory_bytes, gpu.pcie_bytes_per_s) for gpu in found.gpus} == {(0, None)}
    assert (found.link(0, 1).kind, found.link(0, 1).peer_access) == ("unknown", None)


@pytest.mark.parametrize(
    ("code", "broken", "reason"),
    [
        (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, False, "there is no NVIDIA driver (NVML Shared "),
        (pynvml.NVML_ERROR_DRIVER_NOT_LOADED, False, "there is no NVIDIA driver (Driver Not "),
        (
            pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH,
            True,
            "the NVIDIA driver does not answer (RM ",
        ),
    ],
)
def test_a_missing_and_a_broken_driver(driver: Any, code: int, broken: bool, reason: str) -> None:
    def fail() -> None:
        raise pynvml.NVMLError(code)

    driver(Machine(2)).nvmlInit = fail
    found = topology()
    assert (found.gpus, found.broken, found.driver) == ((), broken, "")
    assert found.reason.startswith(reason)


def test_a_gpu_that_fell_off_its_bus(driver: Any) -> None:
    driver(Machine(2, lost=True))
    assert topology() == Topology(
        reason="the NVIDIA driver does not answer (GPU is lost)", broken=True
    )


def test_no_gpu_and_a_missing_package(driver: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    driver(Machine(0))
    assert topology().reason == "the driver knows of no GPU"
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert "nvidia-ml-py cannot be imported" in topology().reason


def test_topology_imports_no_torch() -> None:
    program = (
        "import sys, longtake.engine.planning.topology as t, longtake.cli.commands.doctor\n"
        "t.topology(); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
