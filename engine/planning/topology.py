"""What the driver says of this machine's GPUs, and of how they are linked. Needs no torch.

    found = topology()
    found.gpus                # one Gpu each, as CUDA_VISIBLE_DEVICES shows them
    found.link(0, 1).kind     # "nvlink", "pcie-switch", ...
    found.reason              # why there are none, where there are none

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
"""The widest way between two GPUs: NVLink, through NVSwitch too; PCIe switches alone; a socket's
own PCIe; from socket to socket; the driver does not say."""

# Bytes a second that one lane carries in one direction, by PCIe generation.
_LANE_BYTES_PER_S = {1: 250e6, 2: 500e6, 3: 985e6, 4: 1969e6, 5: 3938e6, 6: 7563e6}


@dataclass(frozen=True)
class Gpu:
    """One GPU.

    Attributes:
        index: among the visible ones, in the driver's order. CUDA counts a machine with GPUs of
            several kinds in another, unless CUDA_DEVICE_ORDER=PCI_BUS_ID.
        memory_bytes, free_bytes: 0 where it has none but the host's.
        capability: CUDA compute capability.
        pcie_bytes_per_s: in one direction, by the lanes that are in use; None if it does not say.
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
    """How two GPUs are linked.

    Attributes:
        num_nvlinks: between them, or of each to the switch; 0 over PCIe.
        peer_access: they reach each other's memory with no detour through the host's; None if the
            driver does not say.
    """

    kind: LinkKind
    num_nvlinks: int = 0
    peer_access: bool | None = None


@dataclass(frozen=True)
class Topology:
    """The GPUs of this machine that may be used, and every pair's link.

    Attributes:
        links: by (index, index), the smaller first.
        driver: its version, and the CUDA version that it can do; empty if there is none.
        reason: why there are no GPUs; empty if there are some.
        broken: a driver is there and does not answer.
        without_driver: there is no driver, and so no GPU.
    """

    gpus: tuple[Gpu, ...] = ()
    links: Mapping[tuple[int, int], Link] = field(default_factory=dict)
    driver: str = ""
    cuda: str = ""
    reason: str = ""
    broken: bool = False
    without_driver: bool = False

    def link(self, one: int, other: int) -> Link:
        """Of two GPUs, in any order."""
        return self.links[min(one, other), max(one, other)]


def gpus() -> tuple[Gpu, ...]:
    """The GPUs that may be used; none without a driver."""
    return topology().gpus


def topology() -> Topology:
    """Ask the driver. Never fails: what is wrong is in ``reason``."""
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
        return _asked(nvml)
    except nvml.NVMLError as error:
        return Topology(reason=f"the NVIDIA driver does not answer ({error})", broken=True)
    finally:
        with suppress(nvml.NVMLError):
            nvml.nvmlShutdown()


def _asked(nvml: Any) -> Topology:
    cuda = _told(nvml, "nvmlSystemGetCudaDriverVersion") or 0
    handles = _visible(nvml, os.environ.get("CUDA_VISIBLE_DEVICES"))
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


def _told(nvml: Any, function: str, *arguments: Any) -> Any:
    """What a function of NVML returns; None where this driver or GPU does not support it."""
    try:
        return getattr(nvml, function)(*arguments)
    except nvml.NVMLError:
        return None


def _visible(nvml: Any, shown: str | None) -> list[Any]:
    """The handles of the GPUs that CUDA_VISIBLE_DEVICES shows, in its order.

    By number, by UUID or the beginning of one, or the UUID of a slice (MIG). As with CUDA, what
    stands behind a name of nothing is not seen, and one that stands there twice hides all.
    """
    handles = [nvml.nvmlDeviceGetHandleByIndex(at) for at in range(nvml.nvmlDeviceGetCount())]
    if shown is None:
        return handles
    uuids = [nvml.nvmlDeviceGetUUID(handle) for handle in handles]
    chosen: dict[str, Any] = {}
    for name in map(str.strip, shown.split(",")):
        if name.startswith("MIG-"):
            found = {name: _told(nvml, "nvmlDeviceGetHandleByUUID", name)}
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
    memory = _told(nvml, "nvmlDeviceGetMemoryInfo", handle)
    capability = _told(nvml, "nvmlDeviceGetCudaComputeCapability", handle)
    # idle, a GPU runs its lanes at a lower speed: the generation that it can do is what counts
    generation = _told(nvml, "nvmlDeviceGetMaxPcieLinkGeneration", handle)
    lanes = _told(nvml, "nvmlDeviceGetCurrPcieLinkWidth", handle)
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
    buses = [_bus(_told(nvml, "nvmlDeviceGetPciInfo", handle)) for handle in handles]
    ends = [_nvlink_ends(nvml, handle) for handle in handles]
    found = {}
    for one, other in combinations(range(len(handles)), 2):
        pair = handles[one], handles[other]
        over_nvlink = _peers(nvml, pair, nvml.NVML_P2P_CAPS_INDEX_NVLINK)
        num_nvlinks = ends[one].count(buses[other]) if buses[other] else 0
        if not num_nvlinks and over_nvlink:
            num_nvlinks = min(len(ends[one]), len(ends[other]))  # each to the switch
        found[one, other] = Link(
            kind="nvlink" if num_nvlinks or over_nvlink else _pcie_kind(nvml, pair),
            num_nvlinks=num_nvlinks,
            # "write": the constant for "read" is a tuple by mistake
            peer_access=_peers(nvml, pair, nvml.NVML_P2P_CAPS_INDEX_WRITE),
        )
    return found


def _bus(pci: Any) -> str:
    return pci.busId if pci else ""


def _nvlink_ends(nvml: Any, handle: Any) -> list[str]:
    """The bus ids at the other ends of a GPU's NVLinks that are up: of GPUs, or of switches."""
    up = []
    for link in range(nvml.NVML_NVLINK_MAX_LINKS):
        if _told(nvml, "nvmlDeviceGetNvLinkState", handle, link):
            up.append(_bus(_told(nvml, "nvmlDeviceGetNvLinkRemotePciInfo", handle, link)))
    return up


def _peers(nvml: Any, pair: tuple[Any, Any], how: int) -> bool | None:
    status = _told(nvml, "nvmlDeviceGetP2PStatus", *pair, how)
    return None if status is None else status == nvml.NVML_P2P_STATUS_OK


def _pcie_kind(nvml: Any, pair: tuple[Any, Any]) -> LinkKind:
    """The way over PCIe, by what both GPUs hang on."""
    level = _told(nvml, "nvmlDeviceGetTopologyCommonAncestor", *pair)
    if level is None:
        return "unknown"
    if level <= nvml.NVML_TOPOLOGY_MULTIPLE:
        return "pcie-switch"
    return "host-bridge" if level <= nvml.NVML_TOPOLOGY_NODE else "socket"
