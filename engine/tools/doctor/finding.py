"""What the doctor's checks receive and return."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from longtake.configs.commands.tools import DoctorConfig
from longtake.configs.engine import EngineConfig

Status = Literal["ok", "warning", "failure"]

TRIAL_S = 60.0


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        name: Name of what was checked.
        status: How bad it is.
        message: What was found, in one line.
        way_out: What to do about it; empty if the status is "ok".
    """

    name: str
    status: Status
    message: str
    way_out: str = ""


@dataclass(frozen=True)
class CheckContext:
    """What the checks look at.

    Attributes:
        doctor: The command's options.
        engine: Configuration of the engine that would render here.
        trial_s: Deadline of a trial on two ranks, in seconds.
    """

    doctor: DoctorConfig
    engine: EngineConfig
    trial_s: float = TRIAL_S

    @property
    def num_gpus(self) -> int:
        """GPUs that an engine would use, one per rank."""
        import torch

        return 0 if self.engine.device == "cpu" else torch.cuda.device_count()

    @property
    def device_type(self) -> Literal["cpu", "cuda"]:
        """The kind of device that an engine would use."""
        return "cuda" if self.num_gpus else "cpu"


@dataclass(frozen=True)
class Check:
    """A check of one thing.

    Attributes:
        name: Name of what is checked.
        run: Yields findings.
        way_out: What to do if ``run`` raises.
    """

    name: str
    run: Callable[[CheckContext], Iterator[Finding]]
    way_out: str


def worst(findings: Iterable[Finding]) -> Status:
    """The worst status of all findings; "ok" if there are none."""
    order: tuple[Status, ...] = ("ok", "warning", "failure")
    return max((finding.status for finding in findings), key=order.index, default="ok")


def gib(num_bytes: float) -> str:
    """A size in GiB, as text."""
    return f"{num_bytes / 2**30:.1f} GiB"
