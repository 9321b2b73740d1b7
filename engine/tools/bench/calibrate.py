"""This machine's hardware profile, measured: what ``longtake plan --gpu FILE`` reckons with."""

from __future__ import annotations

import logging
import os
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import psutil
import torch

from longtake.configs.base import ELEMENT_BYTES, Dtype
from longtake.configs.hardware import Figure, Hardware, Link, PartOfOne, Share
from longtake.engine.tools.bench import measures
from longtake.engine.tools.trial import on_ranks

logger = logging.getLogger(__name__)

_DEADLINE_S = 1200.0
_KINDS = ("linear", "attention", "convolution")
"""The fastest of them is what the profile calls the peak."""

_READ_BYTES = 2**28
_ANY_NUMBER = 1024
_SLOWER = 0.75
"""A link is another than the one within it where less than this part of its bandwidth is left."""


def calibrate(
    device_type: Literal["cpu", "cuda"],
    num_ranks: int,
    *,
    head_size: int,
    rounds: int,
    say: Callable[[str], None] = lambda what: None,
) -> Hardware:
    """Measure a profile, on all ranks at one time.

    Args:
        head_size: of the attention that it is for.
        rounds: of which the median counts.
        say: called with what is measured next.

    Raises:
        RankError: a rank failed, or was not done in time.
    """
    source = f"measured by longtake bench --calibrate, {datetime.now():%Y-%m-%d}, {rounds} rounds"

    def figure(value: float) -> Figure:
        return Figure(value=float(f"{value:.4g}"), source=source)

    if num_ranks == 1:
        logger.warning("one rank measures no links: pass --devices 2 or more for plans of several")
    say("kernels and links")
    main: Dtype = "bfloat16" if device_type == "cuda" else "float32"
    answers = on_ranks(
        measures.everything,
        num_ranks,
        device_type,
        _DEADLINE_S,
        dtypes=[main, *(dtype for dtype in ELEMENT_BYTES if dtype != main)],
        head_size=head_size,
        rounds=rounds,
    )
    rates = {dtype: _slowest([each["rates"][dtype] for each in answers]) for dtype in ELEMENT_BYTES}
    found = links_of(answers[0]["links"], figure)
    overlap = min(each["overlap"] for each in answers)
    say("storage")
    own = rates[main]
    peak = max(own[kind] for kind in _KINDS)
    memory = psutil.virtual_memory().total
    if device_type == "cuda":
        memory = min(
            torch.cuda.get_device_properties(each).total_memory
            for each in range(torch.cuda.device_count())
        )
    return Hardware(
        description=_description(device_type),
        names=(torch.cuda.get_device_name(0),) if device_type == "cuda" else (),
        device=device_type,
        flops_per_s={
            dtype: figure(rate["linear"] * peak / own["linear"]) for dtype, rate in rates.items()
        },
        linear_share=Share(value=round(own["linear"] / peak, 4), source=source),
        attention_share=Share(
            value=round(own["attention"] / peak, 4), source=f"{source}, heads of {head_size}"
        ),
        convolution_share=Share(value=round(own["convolution"] / peak, 4), source=source),
        memory_bytes=figure(memory),
        memory_bytes_per_s=figure(own["memory"]),
        memory_share=Share(value=1.0, source="the bandwidth is what copies reach here"),
        launch_s=figure(own["launch_s"]),
        overlap_share=PartOfOne(value=round(overlap, 3), source=source),
        host_bytes_per_s=None if device_type == "cpu" else figure(_host_bytes_per_s()),
        storage_bytes_per_s=figure(_storage_bytes_per_s()),
        startup_s=figure(max(each["startup_s"] for each in answers)),
        runtime_bytes=figure(max(each["bytes"] for each in answers)),
        # on a CPU all ranks, however many, are processes of one host
        devices_per_node=torch.cuda.device_count() if device_type == "cuda" else _ANY_NUMBER,
        links=tuple(found) or (_unmeasured(),),
    )


def links_of(measured: Sequence[dict[str, Any]], figure: Callable[[float], Figure]) -> list[Link]:
    """The levels that bandwidths over more and more ranks show.

    Args:
        measured: as :func:`longtake.engine.tools.bench.measures.links` returns it.
    """
    found: list[Link] = []
    spans, before = 1, 0.0
    for each in measured:
        bandwidth = each["exchange_bytes_per_s"]
        if not found or bandwidth < _SLOWER * before:
            count = each["ranks"]
            if found:
                found[-1] = found[-1].model_copy(update={"spans": spans})
            # of what each rank sends, what leaves its group of the level within is all that is new
            leaving = spans * (count - spans) / (count - 1)
            found.append(
                Link(
                    name=f"of {count}",
                    shared_by=spans,
                    bytes_per_s=figure(bandwidth * leaving),
                    latency_s=figure(each["latency_s"]),
                )
            )
            before = bandwidth
        spans = each["ranks"]
    return found


def _slowest(answers: Sequence[dict[str, float]]) -> dict[str, float]:
    """Of all ranks: the lowest rates, the longest times."""
    slowest = {}
    for name in answers[0]:
        values = [answer[name] for answer in answers]
        slowest[name] = max(values) if name.endswith("_s") else min(values)
    return slowest


def _unmeasured() -> Link:
    figure = Figure(value=1e9, source="assumption: one rank measures no link")
    return Link(
        name="unmeasured",
        bytes_per_s=figure,
        latency_s=figure.model_copy(update={"value": 1e-3}),
    )


def _description(device_type: str) -> str:
    if device_type == "cuda":
        return f"{torch.cuda.get_device_name(0)}, measured"
    return f"{platform.machine()} CPU of {os.cpu_count()} cores, a core a rank, measured"


def _storage_bytes_per_s() -> float:
    """Reading a file that is not in memory."""
    with tempfile.TemporaryDirectory(prefix="longtake-") as folder:
        path = Path(folder) / "read"
        path.write_bytes(os.urandom(_READ_BYTES))
        with path.open("rb", buffering=0) as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            begun = time.perf_counter()
            while file.read(2**24):
                pass
            return _READ_BYTES / (time.perf_counter() - begun)


def _host_bytes_per_s() -> float:
    """From pinned memory to the first GPU."""
    host = torch.empty(2**28, dtype=torch.uint8, pin_memory=True)
    device = torch.empty_like(host, device="cuda")
    device.copy_(host)
    torch.cuda.synchronize()
    begun = time.perf_counter()
    device.copy_(host, non_blocking=True)
    torch.cuda.synchronize()
    return host.nbytes / (time.perf_counter() - begun)
