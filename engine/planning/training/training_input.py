"""What a training plan is made for: a decoder, a batch of sequences and hardware."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from longtake.configs.base import ELEMENT_BYTES, Dtype
from longtake.configs.decoders import DecoderConfig
from longtake.configs.hardware import Hardware
from longtake.engine.planning.training.decoder import Decoder
from longtake.errors import RequestError

Recompute = Literal["none", "selective", "full"]
"""What backward recomputes of a block: nothing; all but attention, of which one copy of the output
and the log-sum-exp are kept, while q, k and v are exchanged again; everything."""
GRADIENT_BYTES = 4
"""Bytes of a parameter's gradient."""

RECOMPUTE: tuple[Recompute, ...] = ("none", "selective", "full")


@dataclass(frozen=True, kw_only=True)
class TrainingInput:
    """The work of one optimizer step. It is the same for all layouts.

    Args:
        config: The shape of the decoder.
        hardware: The hardware profile.
        sequence: Tokens of one sequence.
        batch: Sequences of one optimizer step.
        dtype: Dtype of weights and activations. Gradients and optimizer states are in float32.

    Raises:
        RequestError: The hardware profile has no rate for the dtype.
    """

    config: DecoderConfig
    hardware: Hardware
    sequence: int
    batch: int = 1
    dtype: Dtype = "bfloat16"

    def __post_init__(self) -> None:
        if self.dtype not in self.hardware.flops_per_s:
            raise RequestError(
                f"dtype={self.dtype}: the profile of {self.hardware.description} has no rate for "
                f"it: use {', '.join(self.hardware.flops_per_s)}"
            )

    @cached_property
    def decoder(self) -> Decoder:
        """The arithmetic of the decoder."""
        return Decoder(self.config)

    @property
    def element_size(self) -> int:
        """Bytes of one element of weights and activations."""
        return ELEMENT_BYTES[self.dtype]

    @property
    def optimizer_bytes(self) -> int:
        """Bytes of a parameter's optimizer states: Adam's two moments, and in half precision the
        weights in float32."""
        return 8 if self.element_size == 4 else 12

    @property
    def peak(self) -> float:
        """FLOPs per second of one device at most."""
        return self.hardware.flops_per_s[self.dtype].value

    def memory_s(self, num_bytes: float) -> float:
        """Seconds of reading or writing bytes of device memory."""
        hardware = self.hardware
        return num_bytes / (hardware.memory_bytes_per_s.value * hardware.memory_share.value)

    def matrices_s(self, flops: float) -> float:
        """Seconds of matrix products."""
        return flops / (self.peak * self.hardware.linear_share.value)
