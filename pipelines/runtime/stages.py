"""Time and traffic of a rendering on one rank, by stage."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from longtake.parallel import count_traffic


@dataclass
class StageReport:
    """Measurements of one rank by stage: text, image, denoising, gathering, decoding.

    Attributes:
        seconds: Duration of each stage.
        bytes_sent: Bytes sent to other ranks by stage; "weights" is the part of "denoising" that
            gathers sharded weights.
        tiles_at_once: Maximum number of tiles decoded at once; 0 if nothing is decoded.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    bytes_sent: dict[str, int] = field(default_factory=dict)
    tiles_at_once: int = 0


@contextmanager
def stage(report: StageReport, name: str) -> Iterator[None]:
    """Add the time and traffic of the enclosed block to a stage."""
    begun = time.perf_counter()
    with count_traffic() as traffic:
        yield
    report.seconds[name] = report.seconds.get(name, 0.0) + time.perf_counter() - begun
    report.bytes_sent[name] = report.bytes_sent.get(name, 0) + traffic.bytes_sent
