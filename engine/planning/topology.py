"""The GPUs of this machine and their links, as the driver reports them. Imports no torch.

    found = topology()
    found.gpus                # the GPUs that CUDA_VISIBLE_DEVICES selects
    found.link(0, 1).kind     # "nvlink", "pcie-switch", ...
    found.reason              # why there are no GPUs; empty if there are some

Source: NVML, the library behind nvidia-smi, through the package nvidia-ml-py.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, Literal

LinkKind = Literal["nvlink", "pcie-switch", "host-bridge", "socket", "unknown"]
"""The best connection between two GPUs: NVLink, directly or through NVSwitch; PCIe switches only;
the PCIe host bridges of one socket; the link between sockets; unknown to the driver."""

# Bytes per second of one lane in one direction, by PCIe generation.
_LANE_BYTES_PER_S = {1: 250e6, 2: 500e6, 3: 985e6, 4: 1969e6, 5: 3938e6, 6: 7563e6}


@dataclass(frozen=True)
class Gpu:
    """One GPU.

    Attributes:
        index: Index among the visible GPUs in the driver's order. CUDA orders GPUs of several kinds
            differently unless CUDA_DEVICE_ORDER=PCI_BUS_ID.
        name: Product name.
        uuid: Unique id.
        memory_bytes: Total memory; 0 if it shares the host's.
        free_bytes: Free memory; 0 if it shares the host's.
        capability: CUDA compute capability.
        pcie_bytes_per_s: PCIe bandwidth in one direction over the lanes in use; None if unknown.
    """

    index: int
    name: str
    uuid: str
    memory_bytes: int
    free_bytes: int
    capability: tuple[int, int]
    pcie_bytes_per_s: float | None


@dataclass(frozen=True)
class Link:
    """The connection between two GPUs.

    Attributes:
        kind: Kind of the connection.
        num_nvlinks: NVLinks between them, or from each to the switch; 0 over PCIe.
        peer_access: Whether they access each other's memory directly; None if unknown.
    """

    kind: LinkKind
    num_nvlinks: int = 0
    peer_access: bool | None = None


@dataclass(frozen=True)
class Topology:
    """The visible GPUs of this machine, and the link of every pair.

    Attributes:
        gpus: The visible GPUs.
        links: Links by pair of indices, the smaller first.
        driver: Version of the driver; empty without one.
        cuda: Highest CUDA version that the driver supports; empty without a driver.
        reason: Why there are no GPUs; empty if there are some.
        broken: Whether a driver is installed but does not respond.
        without_driver: Whether no driver is installed.
    """

    gpus: tuple[Gpu, ...] = ()
    links: Mapping[tuple[int, int], Link] = field(default_factory=dict)
    driver: str = ""
    cuda: str = ""
    reason: str = ""
    broken: bool = False
    without_driver: bool = False

    def link(self, one: int, other: int) -> Link:
        """The link of two GPUs, given in any order."""
        return self.links[min(one, other), max(one, other)]


def gpus() -> tuple[Gpu, ...]:
    """The visible GPUs; none without a driver."""
    return topology().gpus


def topology() -> Topology:
    """Query the driver. Never raises: ``reason`` states what is wrong."""
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError as error:
        return Topology(reason=f"the package nvidia-ml-py cannot be imported ({error})")
    absent = (nvml.NVML_ERROR_LIBRARY_NOT_FOUND, nvml.NVML_ERROR_DRIVER_NOT_LOADED)
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        if error.value in absent:
            return Topology(reason=f"there is no NVIDIA driver ({error})", without_driver=True)
        return Topology(reason=f"the NVIDIA driver does not answer ({error})", broken=True)
    try:
        return _query(nvml)
    except nvml.NVMLError as error:
        return Topology(reason=f"the NVIDIA driver does not answer ({error})", broken=True)
    finally:
        with suppress(nvml.NVMLError):
            nvml.nvmlShutdown()


def _query(nvml: Any) -> Topology:
    cuda = _call(nvml, "nvmlSystemGetCudaDriverVersion") or 0
    handles = _visible_handles(nvml, os.environ.get("CUDA_VISIBLE_DEVICES"))
    reason = ""
    if not handles:
        reason = "the driver knows of no GPU"
        if nvml.nvmlDeviceGetCount():
            reason = f"CUDA_VISIBLE_DEVICES={os.environ['CUDA_VISIBLE_DEVICES']!r} shows no GPU"
    return Topology(
        gpus=tuple(_gpu(nvml, index, handle) for index, handle in enumerate(handles)),
        links=_links(nvml, handles),
        driver=nvml.nvmlSystemGetDriverVersion(),
        cuda=f"{cuda // 1000}.{cuda % 1000 // 10}" if cuda else "",
        reason=reason,
    )


def _call(nvml: Any, function: str, *arguments: Any) -> Any:
    """Call a function of NVML; None if this driver or GPU does not support it."""
    try:
        return getattr(nvml, function)(*arguments)
    except nvml.NVMLError:
        return None


def _visible_handles(nvml: Any, selection: str | None) -> list[Any]:
    """Handles of the GPUs that CUDA_VISIBLE_DEVICES selects, in its order.

    Entries are indices, UUIDs or their prefixes, or MIG UUIDs. As in CUDA, an invalid entry hides
    the ones after it, and a duplicate hides all GPUs.
    """
    handles = [nvml.nvmlDeviceGetHandleByIndex(at) for at in range(nvml.nvmlDeviceGetCount())]
    if selection is None:
        return handles
    uuids = [nvml.nvmlDeviceGetUUID(handle) for handle in handles]
    chosen: dict[str, Any] = {}
    for name in map(str.strip, selection.split(",")):
        if name.startswith("MIG-"):
            found = {name: _call(nvml, "nvmlDeviceGetHandleByUUID", name)}
        elif name.isdecimal():
            found = dict(list(zip(uuids, handles, strict=True))[int(name) :][:1])
        else:
            found = {
                u: h for u, h in zip(uuids, handles, strict=True) if name and u.startswith(name)
            }
        if len(found) != 1 or None in found.values():
            break
        if found.keys() & chosen.keys():
            return []
        chosen |= found
    return list(chosen.values())


def _gpu(nvml: Any, index: int, handle: Any) -> Gpu:
    memory = _call(nvml, "nvmlDeviceGetMemoryInfo", handle)
    capability = _call(nvml, "nvmlDeviceGetCudaComputeCapability", handle)
    # an idle GPU lowers its PCIe generation, so query the maximum
    generation = _call(nvml, "nvmlDeviceGetMaxPcieLinkGeneration", handle)
    lanes = _call(nvml, "nvmlDeviceGetCurrPcieLinkWidth", handle)
    lane = _LANE_BYTES_PER_S.get(generation)
    return Gpu(
        index=index,
        name=nvml.nvmlDeviceGetName(handle),
        uuid=nvml.nvmlDeviceGetUUID(handle),
        memory_bytes=int(memory.total) if memory else 0,
        free_bytes=int(memory.free) if memory else 0,
        capability=tuple(capability) if capability else (0, 0),
        pcie_bytes_per_s=lane * lanes if lane and lanes else None,
    )


def _links(nvml: Any, handles: list[Any]) -> dict[tuple[int, int], Link]:
    buses = [_bus(_call(nvml, "nvmlDeviceGetPciInfo", handle)) for handle in handles]
    ends = [_nvlink_ends(nvml, handle) for handle in handles]
    found = {}
    for one, other in combinations(range(len(handles)), 2):
        pair = handles[one], handles[other]
        over_nvlink = _p2p_status(nvml, pair, nvml.NVML_P2P_CAPS_INDEX_NVLINK)
        num_nvlinks = ends[one].count(buses[other]) if buses[other] else 0
        if not num_nvlinks and over_nvlink:
            num_nvlinks = min(len(ends[one]), len(ends[other]))  # each to the switch
        found[one, other] = Link(
            kind="nvlink" if num_nvlinks or over_nvlink else _pcie_kind(nvml, pair),
            num_nvlinks=num_nvlinks,
            # WRITE, because pynvml defines the constant for READ as a tuple by mistake
            peer_access=_p2p_status(nvml, pair, nvml.NVML_P2P_CAPS_INDEX_WRITE),
        )
    return found


def _bus(pci: Any) -> str:
    return pci.busId if pci else ""


def _nvlink_ends(nvml: Any, handle: Any) -> list[str]:
    """Bus ids of the GPUs or switches that a GPU's active NVLinks connect to."""
    up = []
    for link in range(nvml.NVML_NVLINK_MAX_LINKS):
        if _call(nvml, "nvmlDeviceGetNvLinkState", handle, link):
            up.append(_bus(_call(nvml, "nvmlDeviceGetNvLinkRemotePciInfo", handle, link)))
    return up


def _p2p_status(nvml: Any, pair: tuple[Any, Any], capability: int) -> bool | None:
    status = _call(nvml, "nvmlDeviceGetP2PStatus", *pair, capability)
    return None if status is None else status == nvml.NVML_P2P_STATUS_OK


def _pcie_kind(nvml: Any, pair: tuple[Any, Any]) -> LinkKind:
    """The PCIe connection of two GPUs, by their common ancestor."""
    level = _call(nvml, "nvmlDeviceGetTopologyCommonAncestor", *pair)
    if level is None:
        return "unknown"
    if level <= nvml.NVML_TOPOLOGY_MULTIPLE:
        return "pcie-switch"
    return "host-bridge" if level <= nvml.NVML_TOPOLOGY_NODE else "socket"
