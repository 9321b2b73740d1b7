"""Measures this machine's hardware profile, which ``longtake plan --gpu FILE`` reads."""

from __future__ import annotations

import logging
import os
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from longtake.configs.base import ELEMENT_BYTES, Dtype
from longtake.configs.hardware import Figure, Fraction, Hardware, Link, Share
from longtake.engine.planning.host import host_memory, pinned_memory
from longtake.engine.tools.bench import measures
from longtake.engine.tools.trial import on_ranks

logger = logging.getLogger(__name__)

_DEADLINE_S = 1200.0
_KINDS = ("linear", "attention", "convolution")
"""Operations whose fastest rate is the profile's peak."""

_READ_BYTES = 2**28
_UNLIMITED_DEVICES = 1024
_SLOWER = 0.75
"""Share of the bandwidth of fewer ranks, below which more ranks span another level of links."""


def calibrate(
    device_type: Literal["cpu", "cuda"],
    num_ranks: int,
    *,
    head_size: int,
    rounds: int,
    on_measure: Callable[[str], None] = lambda name: None,
) -> Hardware:
    """Measure a profile on all ranks at the same time.

    Args:
        device_type: "cpu" or "cuda".
        num_ranks: Number of ranks.
        head_size: Head size of the attention measured.
        rounds: Rounds whose median counts.
        on_measure: Called with what is measured next.

    Raises:
        RankError: A rank failed, or the deadline passed.
    """
    if num_ranks == 1:
        logger.warning("one rank measures no links: pass --devices 2 or more for plans of several")
    source = f"measured by longtake bench --calibrate, {datetime.now():%Y-%m-%d}, {rounds} rounds"
    on_measure("kernels and links")
    main: Dtype = "bfloat16" if device_type == "cuda" else "float32"
    by_rank = on_ranks(
        measures.profile,
        num_ranks,
        device_type,
        _DEADLINE_S,
        dtypes=[main, *(dtype for dtype in ELEMENT_BYTES if dtype != main)],
        head_size=head_size,
        rounds=rounds,
    )
    on_measure("storage")
    return Hardware(
        **_device(device_type, source),
        **_rates(by_rank, main, source, head_size),
        links=tuple(links_of(by_rank[0]["links"], partial(_figure, source=source)))
        or (_unmeasured(),),
    )


def _figure(value: float, source: str) -> Figure:
    return Figure(value=float(f"{value:.4g}"), source=source)


def _device(device_type: Literal["cpu", "cuda"], source: str) -> dict[str, Any]:
    """The fields of a profile that need no ranks."""
    if device_type == "cpu":
        return {
            "description": f"{platform.machine()} CPU of {os.cpu_count()} cores, a core a rank, "
            "measured",
            "names": (),
            "device": device_type,
            "memory_bytes": host_memory(),
            "host_bytes_per_s": None,
            "storage_bytes_per_s": _figure(_storage_bytes_per_s(), source),
            # all ranks are processes of one host, however many there are
            "devices_per_node": _UNLIMITED_DEVICES,
        }
    name, count = torch.cuda.get_device_name(0), torch.cuda.device_count()
    memory = min(torch.cuda.get_device_properties(each).total_memory for each in range(count))
    return {
        "description": f"{name}, measured",
        "names": (name,),
        "device": device_type,
        "memory_bytes": _figure(memory, source),
        "host_bytes_per_s": _figure(_host_bytes_per_s(), source),
        "host_memory_bytes": host_memory(),
        "pinned_bytes": pinned_memory(host_memory()),
        "storage_bytes_per_s": _figure(_storage_bytes_per_s(), source),
        "devices_per_node": count,
    }


def _rates(
    by_rank: Sequence[dict[str, Any]], main: Dtype, source: str, head_size: int
) -> dict[str, Any]:
    """The fields of a profile that ranks measured; the slowest rank counts.

    Args:
        by_rank: As :func:`longtake.engine.tools.bench.measures.profile` returns it.
        main: The dtype in which all kinds of operations were measured.
        source: Source of the figures.
        head_size: Head size of the attention measured.
    """
    rates = {dtype: _slowest([each["rates"][dtype] for each in by_rank]) for dtype in ELEMENT_BYTES}
    own = rates[main]
    peak = max(own[kind] for kind in _KINDS)
    shares = {
        f"{kind}_share": Share(value=round(own[kind] / peak, 4), source=source) for kind in _KINDS
    }
    of_heads = {"source": f"{source}, heads of {head_size}"}
    shares["attention_share"] = shares["attention_share"].model_copy(update=of_heads)
    return {
        **shares,
        "flops_per_s": {
            dtype: _figure(rate["linear"] * peak / own["linear"], source)
            for dtype, rate in rates.items()
        },
        "memory_bytes_per_s": _figure(own["memory"], source),
        "memory_share": Share(value=1.0, source="the bandwidth is what copies reach here"),
        "launch_s": _figure(own["launch_s"], source),
        "overlap_share": Fraction(
            value=round(min(each["overlap"] for each in by_rank), 3), source=source
        ),
        "startup_s": _figure(max(each["startup_s"] for each in by_rank), source),
        "runtime_bytes": _figure(max(each["bytes"] for each in by_rank), source),
    }


def links_of(measured: Sequence[dict[str, Any]], figure: Callable[[float], Figure]) -> list[Link]:
    """The levels of links, derived from bandwidths over more and more ranks.

    Args:
        measured: As :func:`longtake.engine.tools.bench.measures.links` returns it.
        figure: Makes a figure of a measured value.
    """
    levels: list[Link] = []
    spans, previous = 1, 0.0
    for each in measured:
        bandwidth = each["exchange_bytes_per_s"]
        if not levels or bandwidth < _SLOWER * previous:
            count = each["ranks"]
            if levels:
                levels[-1] = levels[-1].model_copy(update={"spans": spans})
            # only what leaves a rank's group of the inner level crosses this one
            leaving = spans * (count - spans) / (count - 1)
            levels.append(
                Link(
                    name=f"of {count}",
                    shared_by=spans,
                    bytes_per_s=figure(bandwidth * leaving),
                    latency_s=figure(each["latency_s"]),
                )
            )
            previous = bandwidth
        spans = each["ranks"]
    return levels


def _slowest(answers: Sequence[dict[str, float]]) -> dict[str, float]:
    """The lowest rates and the longest times of all ranks."""
    slowest = {}
    for name in answers[0]:
        values = [answer[name] for answer in answers]
        slowest[name] = max(values) if name.endswith("_s") else min(values)
    return slowest


def _unmeasured() -> Link:
    """An assumed link, where one rank measures none."""
    figure = Figure(value=1e9, source="assumption: one rank measures no link")
    return Link(
        name="unmeasured",
        bytes_per_s=figure,
        latency_s=figure.model_copy(update={"value": 1e-3}),
    )


def _storage_bytes_per_s() -> float:
    """Rate of reading a file that is not in the page cache."""
    with tempfile.TemporaryDirectory(prefix="longtake-") as folder:
        path = Path(folder) / "read"
        path.write_bytes(os.urandom(_READ_BYTES))
        with path.open("rb", buffering=0) as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            started_at = time.perf_counter()
            while file.read(2**24):
                pass
            return _READ_BYTES / (time.perf_counter() - started_at)


def _host_bytes_per_s() -> float:
    """Rate of copies from pinned memory to the first GPU."""
    host = torch.empty(2**28, dtype=torch.uint8, pin_memory=True)
    device = torch.empty_like(host, device="cuda")
    device.copy_(host)
    torch.cuda.synchronize()
    started_at = time.perf_counter()
    device.copy_(host, non_blocking=True)
    torch.cuda.synchronize()
    return host.nbytes / (time.perf_counter() - started_at)
