"""What a rank measures of a rendering, by stage."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from longtake.parallel import count_traffic


@dataclass
class StageReport:
    """What this rank measured, by stage: text, image, denoising, gathering, decoding.

    Attributes:
        seconds: of each stage.
        bytes_sent: to other ranks; "weights" are those that others fetched while denoising.
        tiles_at_once: that are decoded at once, at most; 0 where nothing is decoded.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    bytes_sent: dict[str, int] = field(default_factory=dict)
    tiles_at_once: int = 0


@contextmanager
def stage(report: StageReport, name: str) -> Iterator[None]:
    """Add the enclosed lines' time and traffic to a stage."""
    begun = time.perf_counter()
    with count_traffic() as traffic:
        yield
    report.seconds[name] = report.seconds.get(name, 0.0) + time.perf_counter() - begun
    report.bytes_sent[name] = report.bytes_sent.get(name, 0) + traffic.bytes_sent
