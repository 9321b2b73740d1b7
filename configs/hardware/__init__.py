"""Profiles of hardware: what a plan is reckoned with. Each figure says where it comes from."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator

from longtake.configs.base import Dtype, StrictModel, matches
from longtake.configs.yaml_reader import declared_in
from longtake.errors import RequestError, one_line
from longtake.files.reading import MAX_YAML_BYTES, read_regular

Words = Annotated[
    str,
    Field(min_length=1, max_length=200),
    matches(r"[^\x00-\x1f\x7f]+", "one line of text"),
]
"""One line that a terminal can show."""


class Figure(StrictModel):
    """A number and its source: a datasheet, a publication, a measurement, or an assumption."""

    value: Annotated[float, Field(ge=0, le=1e21, allow_inf_nan=False)]
    source: Annotated[str, Field(min_length=1)]


class Share(Figure):
    """The part of a peak that is really reached."""

    value: Annotated[float, Field(gt=0, le=1)]


class PartOfOne(Figure):
    """A part that may be nothing, too."""

    value: Annotated[float, Field(ge=0, le=1)]


class Link(StrictModel):
    """One level of the links between devices.

    Devices are numbered so that those that are close stand together. ``spans`` of them in a row
    reach each other over this level or one within it; ``shared_by`` in a row share one way in
    and one way out of it: 1 is a port of one's own, 8 the network of a machine of 8.

    Attributes:
        name: e.g. nvlink, pcie, network.
        spans: devices that it connects; None is all there are.
        shared_by: devices that share the bandwidth.
        bytes_per_s: that pass each way at one time, as transfers reach it.
        latency_s: of one exchange over it.
    """

    name: Words
    spans: Annotated[int, Field(ge=1)] | None = None
    shared_by: Annotated[int, Field(ge=1)] = 1
    bytes_per_s: Figure
    latency_s: Figure

    @field_validator("bytes_per_s")
    @classmethod
    def _divides(cls, rate: Figure) -> Figure:
        return _checked_rate(rate)


class Hardware(StrictModel):
    """What ranks run on: one kind of device, and the links between them.

    Attributes:
        description: in a line.
        names: parts of the names by which drivers know the device.
        device: kind of device.
        flops_per_s: dense peak, by dtype.
        linear_share, attention_share, convolution_share: of that peak, as kernels reach it.
        memory_bytes: of one device (of a host, where ranks are processes: None is unknown).
        memory_bytes_per_s, memory_share: its bandwidth, and the part that is reached.
        launch_s: for the host to start one operation; a device never waits where it lags behind.
        overlap_share: of a transfer, what costs nothing while something is computed.
        host_bytes_per_s: between host and device.
        storage_bytes_per_s: at which weights are read.
        startup_s: until a rank begins to load.
        runtime_bytes: that a rank holds before it has loaded anything.
        devices_per_node: in one machine.
        links: innermost first.
    """

    description: Words
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
    overlap_share: PartOfOne
    host_bytes_per_s: Figure | None = None
    storage_bytes_per_s: Figure
    startup_s: Figure
    runtime_bytes: Figure
    devices_per_node: Annotated[int, Field(ge=1)]
    links: Annotated[tuple[Link, ...], Field(min_length=1)]

    @field_validator("flops_per_s")
    @classmethod
    def _names_a_dtype(cls, rates: dict[Dtype, Figure]) -> dict[Dtype, Figure]:
        if not rates:
            raise ValueError("must name a dtype at least")
        return {dtype: _checked_rate(rate) for dtype, rate in rates.items()}

    @field_validator("memory_bytes_per_s", "host_bytes_per_s", "storage_bytes_per_s")
    @classmethod
    def _divides(cls, rate: Figure | None) -> Figure | None:
        return rate if rate is None else _checked_rate(rate)

    @field_validator("links")
    @classmethod
    def _grow(cls, links: tuple[Link, ...]) -> tuple[Link, ...]:
        spans = [math.inf if link.spans is None else link.spans for link in links]
        if spans != sorted(set(spans)) or spans[-1] != math.inf:
            raise ValueError("must span more devices each, and the last one all (no spans)")
        return links

    def matches(self, name: str) -> bool:
        """Whether a driver's name of a device is this one's: one of ``names``, in whole words."""
        words = re.sub(r"[^a-z0-9]+", " ", name.lower())
        own = (re.sub(r"[^a-z0-9]+", " ", each.lower()) for each in self.names)
        return any(f" {each} " in f" {words} " for each in own)

    def with_node_of(self, devices: int) -> Hardware:
        """The same devices, so many to a machine: the level that reached all of one still does."""
        before, links, reached = self.devices_per_node, list[Link](), False
        for link in self.links:
            spans, shared = link.spans, link.shared_by
            if spans is not None and spans >= min(before, devices):
                if reached:
                    continue  # between parts that the smaller machine has not
                spans, reached = devices, True
            shared = devices if shared == before > 1 else min(shared, devices)
            links.append(link.model_copy(update={"spans": spans, "shared_by": shared}))
        return self.model_copy(update={"devices_per_node": devices, "links": tuple(links)})


def _checked_rate(rate: Figure) -> Figure:
    """A figure that something is divided by."""
    if rate.value < 1:
        raise ValueError("must be 1 a second at least")
    return rate


def profiles() -> list[str]:
    """The names of the profiles that come with the package."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.yaml"))


def load_hardware(name: str) -> Hardware:
    """A profile, by its name or the path of a YAML file.

    Raises:
        RequestError: there is none of that name, or the file holds none.
    """
    path = Path(os.path.expanduser(name))
    if name.lower() in profiles():
        path = Path(__file__).parent / f"{name.lower()}.yaml"
    elif path.suffix not in (".yaml", ".yml"):
        raise RequestError(
            f"gpu={name!r} is not known: use {', '.join(profiles())}, here, or a .yaml file as "
            "longtake bench --calibrate writes it"
        )
    try:
        return declared_in(Hardware, read_regular(path, MAX_YAML_BYTES))
    except OSError as error:
        raise RequestError(f"gpu={name!r} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise RequestError(f"gpu={name!r} holds no hardware profile: {one_line(error)}") from error
