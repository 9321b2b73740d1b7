"""The duration of a part of a training step, by cause."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class PassTime:
    """Seconds of one rank.

    Attributes:
        matrices_s: Matrix products.
        attention_s: Attention kernels.
        memory_s: What memory bandwidth limits: norms, activations, copies, the optimizer.
        exposed_s: Communication that computation does not hide.
        hidden_s: Communication behind computation.
        waiting_s: Time without work: the pipeline's bubble, and the host where it launches slower
            than the device computes.
    """

    matrices_s: float = 0.0
    attention_s: float = 0.0
    memory_s: float = 0.0
    exposed_s: float = 0.0
    hidden_s: float = 0.0
    waiting_s: float = 0.0

    @property
    def computing_s(self) -> float:
        """Time in which the device computes."""
        return self.matrices_s + self.attention_s + self.memory_s

    @property
    def seconds(self) -> float:
        """The duration."""
        return self.computing_s + self.exposed_s + self.waiting_s

    def __add__(self, other: PassTime) -> PassTime:
        return PassTime(
            *(getattr(self, each.name) + getattr(other, each.name) for each in fields(self))
        )

    def __mul__(self, times: float) -> PassTime:
        return PassTime(*(times * getattr(self, each.name) for each in fields(self)))

    def behind(self, communication_s: float, overlap_share: float) -> PassTime:
        """The same with more communication, hidden by the computing time that is still free.

        Args:
            communication_s: Duration of the communication.
            overlap_share: Fraction of it that computation can hide.
        """
        free_s = max(0.0, self.computing_s - self.hidden_s)
        hidden_s = min(overlap_share * communication_s, free_s)
        return self + PassTime(exposed_s=communication_s - hidden_s, hidden_s=hidden_s)
