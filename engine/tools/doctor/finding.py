"""What the doctor is asked for, and what it says."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from longtake.configs.engine import EngineConfig
from longtake.configs.tools import DoctorConfig

Status = Literal["ok", "warning", "failure"]

TRIAL_S = 60.0


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        way_out: what to do about it; empty where nothing need be done.
    """

    name: str
    status: Status
    message: str
    way_out: str = ""


@dataclass(frozen=True)
class Asked:
    """What is looked at.

    Attributes:
        trial_s: in which two ranks must have exchanged something.
    """

    doctor: DoctorConfig
    engine: EngineConfig
    trial_s: float = TRIAL_S

    @property
    def num_gpus(self) -> int:
        """That a rendering would find; each has a rank of its own."""
        import torch

        return 0 if self.engine.device == "cpu" else torch.cuda.device_count()

    @property
    def device_type(self) -> Literal["cpu", "cuda"]:
        """What can be rendered on here."""
        return "cuda" if self.num_gpus else "cpu"


@dataclass(frozen=True)
class Check:
    """A look at one thing.

    Attributes:
        way_out: where it raises.
    """

    name: str
    run: Callable[[Asked], Iterator[Finding]]
    way_out: str


def worst(findings: Iterable[Finding]) -> Status:
    """The status of all together."""
    order: tuple[Status, ...] = ("ok", "warning", "failure")
    return max((finding.status for finding in findings), key=order.index, default="ok")


def gib(num_bytes: float) -> str:
    """A size in words."""
    return f"{num_bytes / 2**30:.1f} GiB"
