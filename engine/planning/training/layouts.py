"""Hybrids of data, pipeline, ring, Ulysses and tensor parallelism, and their device groups.

Devices are numbered with tensor parallelism innermost, then Ulysses, ring, data and pipeline, so
that what communicates most stays within a node (USP, arXiv 2405.07719, section 4).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt

from longtake.parallel import ParallelDims

Zero = Literal[0, 1, 2, 3]
"""ZeRO's stage: 0 shards nothing, 1 optimizer states, 2 gradients too, 3 parameters too."""

Axis = Literal["pipeline", "data", "ring", "ulysses", "tensor"]
AXES: tuple[Axis, ...] = ("pipeline", "data", "ring", "ulysses", "tensor")
"""The axes of a layout, outermost first."""

MAX_DEVICES = 512
"""Most devices that a plan covers."""


@dataclass(frozen=True, kw_only=True)
class TrainingLayout:
    """One hybrid.

    Args:
        pipeline: Stages that the blocks are split into.
        data: Replicas that take different sequences of the batch.
        ring: Ranks among which keys and values rotate.
        ulysses: Ranks that exchange tokens for heads.
        tensor: Ranks that each matrix is split over.
        tensor_sequence: Whether the tensor ranks split the tokens between their matrices ("TP-sp").
        zero: ZeRO's stage over all ranks that hold the same parameters: data x ring x ulysses.
    """

    pipeline: int = 1
    data: int = 1
    ring: int = 1
    ulysses: int = 1
    tensor: int = 1
    tensor_sequence: bool = True
    zero: Zero = 0

    @property
    def degrees(self) -> tuple[int, ...]:
        """Degrees in the order of AXES."""
        return (self.pipeline, self.data, self.ring, self.ulysses, self.tensor)

    @property
    def world_size(self) -> int:
        """Number of devices."""
        return math.prod(self.degrees)

    @property
    def copies(self) -> int:
        """Number of ranks that hold the same parameters, over which ZeRO shards."""
        return self.data * self.ring * self.ulysses

    def share(self, stage: int) -> float:
        """The part of what ZeRO shards from this stage on that one rank holds.

        Args:
            stage: 1 for optimizer states, 2 for gradients, 3 for weights.
        """
        return 1 / self.copies if self.zero >= stage else 1.0

    @cached_property
    def dims(self) -> ParallelDims:
        """The layout of one sequence's attention."""
        return ParallelDims(ring_degree=self.ring, ulysses_degree=self.ulysses)

    @property
    def token_split(self) -> int:
        """Parts that the tokens between the matrices are split into within a tensor group."""
        return self.tensor if self.tensor_sequence else 1

    @property
    def name(self) -> str:
        """Degrees above 1, outermost first, and ZeRO's stage: "dp2 ring2 ulysses4 tp2-sp zero1"."""
        short = ("pp", "dp", "ring", "ulysses", "tp")
        parts = [f"{n}{d}" for n, d in zip(short, self.degrees, strict=True) if d > 1]
        if self.tensor > 1 and self.tensor_sequence:
            parts[-1] += "-sp"
        return " ".join([*parts, f"zero{self.zero}"] if self.copies > 1 else parts) or "one device"

    def groups(self, *axes: Axis) -> npt.NDArray[np.int64]:
        """Devices that differ in these axes alone, one row a group: ``[groups, members]``."""
        grid: npt.NDArray[np.int64] = np.arange(self.world_size).reshape(self.degrees)
        inner = [AXES.index(axis) for axis in AXES if axis in axes]
        outer = [at for at in range(len(AXES)) if at not in inner]
        members = math.prod(self.degrees[at] for at in inner)
        rows: npt.NDArray[np.int64] = grid.transpose(*outer, *inner).reshape(-1, members)
        return rows


def layouts(devices: int) -> Iterator[TrainingLayout]:
    """Every hybrid of a number of devices, whether or not it can run."""
    for pipeline, data, ring, ulysses, tensor in _factorizations(devices, len(AXES)):
        copies = data * ring * ulysses
        stages: tuple[Zero, ...] = (0, 1, 2, 3) if copies > 1 else (0,)
        splits = (True, False) if tensor > 1 else (True,)
        for zero, tensor_sequence in itertools.product(stages, splits):
            yield TrainingLayout(
                pipeline=pipeline,
                data=data,
                ring=ring,
                ulysses=ulysses,
                tensor=tensor,
                tensor_sequence=tensor_sequence,
                zero=zero,
            )


def _factorizations(number: int, parts: int) -> Iterator[tuple[int, ...]]:
    """Every ordered way to write a number as a product."""
    if parts == 1:
        yield (number,)
        return
    for first in range(1, number + 1):
        if number % first == 0:
            for rest in _factorizations(number // first, parts - 1):
                yield (first, *rest)
