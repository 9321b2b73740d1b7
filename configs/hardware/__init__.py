"""Hardware profiles for the planner. Every figure states its source."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator

from longtake.configs.base import Dtype, StrictModel
from longtake.configs.field_types import matches
from longtake.configs.yaml_reader import read_yaml_as
from longtake.errors import RequestError, one_line
from longtake.files.reading import MAX_YAML_BYTES, read_regular

Line = Annotated[
    str,
    Field(min_length=1, max_length=200),
    matches(r"[^\x00-\x1f\x7f]+", "one line of text"),
]
"""One printable line of text."""


class Figure(StrictModel):
    """A value and its source: a datasheet, a publication, a measurement, or an assumption."""

    value: Annotated[float, Field(ge=0, le=1e21, allow_inf_nan=False)]
    source: Annotated[str, Field(min_length=1)]


class Share(Figure):
    """A fraction of a peak rate that is achieved, above 0."""

    value: Annotated[float, Field(gt=0, le=1)]


class Fraction(Figure):
    """A fraction, 0 included."""

    value: Annotated[float, Field(ge=0, le=1)]


class Link(StrictModel):
    """One level of the interconnect.

    Devices that are close have neighboring numbers. ``spans`` consecutive devices reach each other
    over this level or an inner one; ``shared_by`` consecutive devices share one incoming and one
    outgoing link: 1 is a port per device, 8 the network port of a node of 8.

    Attributes:
        name: Name, such as nvlink, pcie or network.
        spans: Number of devices that it connects; None for all.
        shared_by: Number of devices that share its bandwidth.
        bytes_per_s: Achieved bandwidth in each direction.
        latency_s: Latency of one exchange.
    """

    name: Line
    spans: Annotated[int, Field(ge=1)] | None = None
    shared_by: Annotated[int, Field(ge=1)] = 1
    bytes_per_s: Figure
    latency_s: Figure

    @field_validator("bytes_per_s")
    @classmethod
    def _check_divisor(cls, rate: Figure) -> Figure:
        return _check_rate(rate)


class Hardware(StrictModel):
    """A kind of device and the links between devices.

    Attributes:
        description: One line for users.
        names: Substrings of the device names that drivers report, in whole words.
        device: Device type.
        flops_per_s: Dense peak rate by dtype.
        linear_share: Fraction of the peak rate that matrix products reach.
        attention_share: Fraction of the peak rate that attention kernels reach.
        convolution_share: Fraction of the peak rate that convolutions reach.
        memory_bytes: Memory of one device, or of a host of CPU ranks; None if unknown.
        memory_bytes_per_s: Peak memory bandwidth.
        memory_share: Fraction of the memory bandwidth that copies reach.
        launch_s: Seconds for the host to launch one operation.
        overlap_share: Fraction of a transfer that concurrent computation hides.
        host_bytes_per_s: Bandwidth between host and device; None without a device.
        host_memory_bytes: Memory of the host; None if unknown.
        host_memory_bytes_per_s: Bandwidth of the host's memory, over all of its channels; None if
            unknown.
        pinned_bytes: Host memory that can be page-locked; None if all of it can.
        unified_memory: Whether device and host share one memory, of ``memory_bytes``.
        storage_bytes_per_s: Bandwidth of reading weights.
        startup_s: Seconds until a rank starts loading.
        runtime_bytes: Memory of a rank before it loads anything.
        devices_per_node: Number of devices per node.
        links: Levels of the interconnect, innermost first.
    """

    description: Line
    names: tuple[str, ...] = ()
    device: Literal["cuda", "cpu"] = "cuda"
    flops_per_s: dict[Dtype, Figure]
    linear_share: Share
    attention_share: Share
    convolution_share: Share
    memory_bytes: Figure | None = None
    memory_bytes_per_s: Figure
    memory_share: Share
    launch_s: Figure
    overlap_share: Fraction
    host_bytes_per_s: Figure | None = None
    host_memory_bytes: Figure | None = None
    host_memory_bytes_per_s: Figure | None = None
    pinned_bytes: Figure | None = None
    unified_memory: bool = False
    storage_bytes_per_s: Figure
    startup_s: Figure
    runtime_bytes: Figure
    devices_per_node: Annotated[int, Field(ge=1)]
    links: Annotated[tuple[Link, ...], Field(min_length=1)]

    @field_validator("flops_per_s")
    @classmethod
    def _not_empty(cls, rates: dict[Dtype, Figure]) -> dict[Dtype, Figure]:
        if not rates:
            raise ValueError("must name a dtype at least")
        return {dtype: _check_rate(rate) for dtype, rate in rates.items()}

    @field_validator(
        *("memory_bytes_per_s", "host_bytes_per_s", "host_memory_bytes_per_s"),
        "storage_bytes_per_s",
    )
    @classmethod
    def _check_divisor(cls, rate: Figure | None) -> Figure | None:
        return rate if rate is None else _check_rate(rate)

    @field_validator("links")
    @classmethod
    def _nested(cls, links: tuple[Link, ...]) -> tuple[Link, ...]:
        spans = [math.inf if link.spans is None else link.spans for link in links]
        if spans != sorted(set(spans)) or spans[-1] != math.inf:
            raise ValueError(
                "must each span more devices than the one before, and the last all (no spans)"
            )
        return links

    def matches(self, name: str) -> bool:
        """Whether a device name from the driver contains one of ``names`` as whole words."""
        words = re.sub(r"[^a-z0-9]+", " ", name.lower())
        own = (re.sub(r"[^a-z0-9]+", " ", each.lower()) for each in self.names)
        return any(f" {each} " in f" {words} " for each in own)

    def shared_by(self, engines: int) -> Hardware:
        """The same hardware with an equal share of the host for one of several engines."""
        names = ["host_memory_bytes", "host_memory_bytes_per_s", "pinned_bytes"]
        if self.device == "cpu":
            names.append("memory_bytes")
        figures = {name: getattr(self, name) for name in names}
        return self.model_copy(
            update={
                name: figure.model_copy(update={"value": figure.value / engines})
                for name, figure in figures.items()
                if figure is not None
            }
        )

    def with_node_of(self, devices: int) -> Hardware:
        """The same hardware with another number of devices per node.

        The level that connected all devices of a node still does.
        """
        before, links, reached = self.devices_per_node, list[Link](), False
        for link in self.links:
            spans, shared = link.spans, link.shared_by
            if spans is not None and spans >= min(before, devices):
                if reached:
                    continue  # a level between parts that the smaller node lacks
                spans, reached = devices, True
            shared = devices if shared == before > 1 else min(shared, devices)
            links.append(link.model_copy(update={"spans": spans, "shared_by": shared}))
        return self.model_copy(update={"devices_per_node": devices, "links": tuple(links)})


def _check_rate(rate: Figure) -> Figure:
    """Check a rate, which times are divided by."""
    if rate.value < 1:
        raise ValueError("must be at least 1 per second")
    return rate


def profiles() -> list[str]:
    """Names of the bundled profiles."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.yaml"))


def load_hardware(name: str) -> Hardware:
    """Load a bundled profile by name, or a profile from a YAML file.

    Raises:
        RequestError: The name is unknown, or the file cannot be read or is not a profile.
    """
    path = Path(os.path.expanduser(name))
    if name.lower() in profiles():
        path = Path(__file__).parent / f"{name.lower()}.yaml"
    elif path.suffix not in (".yaml", ".yml"):
        raise RequestError(
            f"gpu={name!r} is unknown: use {', '.join(profiles())}, here, or a .yaml file "
            "written by longtake bench --calibrate"
        )
    try:
        return read_yaml_as(Hardware, read_regular(path, MAX_YAML_BYTES))
    except OSError as error:
        raise RequestError(f"gpu={name!r} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise RequestError(f"gpu={name!r} is not a hardware profile: {one_line(error)}") from error
