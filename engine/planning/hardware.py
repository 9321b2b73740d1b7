"""The hardware profile of this machine."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from longtake.configs.hardware import Figure, Hardware, Link, load_hardware, profiles
from longtake.engine.planning.host import available_memory, host_memory, pinned_memory
from longtake.engine.planning.topology import LinkKind, Topology, topology

logger = logging.getLogger(__name__)

_PCIE_LEVELS: tuple[LinkKind, ...] = ("pcie-switch", "host-bridge", "socket")
_PCIE_SHARE = 0.8
"""Fraction of a port's bandwidth that transfers reach."""

_FALLBACK_PROFILE = "h100"


def find_hardware(name: str, devices_per_node: int | None = None) -> Hardware:
    """The hardware that a plan is made for.

    Args:
        name: A bundled profile, a file, or "here" for this machine.
        devices_per_node: Number of devices per node; the profile's if None.

    Raises:
        RequestError: There is no such profile.
    """
    hardware = hardware_here() if name == "here" else load_hardware(name)
    return hardware if devices_per_node is None else hardware.with_node_of(devices_per_node)


def hardware_here(device_type: str = "auto") -> Hardware:
    """The profile of this machine's GPUs, with their memory and links, and the host's memory;
    without GPUs, a CPU's.

    Args:
        device_type: "cpu", "cuda" or "auto", which uses GPUs if there are any.
    """
    found, memory = Topology() if device_type == "cpu" else topology(), host_memory()
    if not found.gpus:
        return load_hardware("cpu").model_copy(update={"memory_bytes": memory})
    first = found.gpus[0]
    known = [profile for name in profiles() if (profile := load_hardware(name)).matches(first.name)]
    if not known:
        logger.warning(
            "there is no profile of %s: plans use that of %s; measure your own with longtake bench "
            "--calibrate",
            first.name,
            _FALLBACK_PROFILE,
        )
    profile = known[0] if known else load_hardware(_FALLBACK_PROFILE)
    update: dict[str, object] = {"links": _links(profile, found)}
    update["devices_per_node"] = len(found.gpus)
    update["host_memory_bytes"] = available_memory(memory)
    update["pinned_bytes"] = pinned_memory(memory)
    if profile.unified_memory:
        update["memory_bytes"] = memory
    elif first.memory_bytes:
        smallest = min(gpu.memory_bytes for gpu in found.gpus)
        update["memory_bytes"] = Figure(value=smallest, source="the driver of this machine")
    return profile.model_copy(update=update)


def _links(profile: Hardware, found: Topology) -> tuple[Link, ...]:
    """The links of this machine: the profile's, or PCIe levels as the driver reports them."""
    count = len(found.gpus)
    kinds = {link.kind for link in found.links.values()}
    if kinds <= {"nvlink", "unknown"}:
        return profile.with_node_of(count).links
    base = load_hardware("l20").links
    links, shared_by = [], 1
    for level, link in zip(_PCIE_LEVELS, base, strict=False):
        spans = _span(found, _PCIE_LEVELS[: _PCIE_LEVELS.index(level) + 1])
        if spans <= shared_by:
            continue
        update: dict[str, object] = {"spans": spans, "shared_by": shared_by}
        port = found.gpus[0].pcie_bytes_per_s
        if shared_by == 1 and port:
            update["bytes_per_s"] = Figure(
                value=port * _PCIE_SHARE,
                source="PCIe lanes, by the driver of this machine",
            )
        links.append(link.model_copy(update=update))
        shared_by = spans
    return (*links, base[-1].model_copy(update={"shared_by": count}))


def _span(found: Topology, kinds: Sequence[LinkKind]) -> int:
    """Number of leading GPUs that are all connected by these kinds of links or better ones."""
    able = {"nvlink", *kinds}
    count = 1
    while count < len(found.gpus) and all(
        found.link(other, count).kind in able for other in range(count)
    ):
        count += 1
    return count
