"""Predicts every hybrid that a training step can run in, and ranks them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from longtake.engine.planning.training.layouts import MAX_DEVICES, TrainingLayout, layouts
from longtake.engine.planning.training.memory import TrainingMemory, plan_memory
from longtake.engine.planning.training.pass_time import PassTime
from longtake.engine.planning.training.step_time import Step
from longtake.engine.planning.training.training_input import RECOMPUTE, Recompute, TrainingInput
from longtake.errors import LayoutError, RequestError

_TIE_RATIO = 1.005
"""Predicted times that differ by less are a tie, which the smaller memory wins."""


@dataclass(frozen=True)
class TrainingPrediction:
    """The predicted time and memory of one hybrid.

    Attributes:
        training: The decoder, the batch and the hardware.
        layout: The layout.
        recompute: What backward recomputes.
        time: One optimizer step.
        memory: Memory of the rank that needs most.
    """

    training: TrainingInput
    layout: TrainingLayout
    recompute: Recompute
    time: PassTime
    memory: TrainingMemory

    @property
    def tokens_per_s(self) -> float:
        """Tokens per second of all devices."""
        return self.training.batch * self.training.sequence / self.time.seconds

    @cached_property
    def mfu(self) -> float:
        """Model FLOPs utilization: three times forward's FLOPs, attention causal, over the peak of
        all devices."""
        flops = self.training.batch * self.training.decoder.model_flops(self.training.sequence)
        return flops / (self.time.seconds * self.training.peak * self.layout.world_size)


@dataclass(frozen=True)
class RefusedHybrid:
    """A layout that cannot run, and why."""

    layout: TrainingLayout
    reason: str


@dataclass(frozen=True)
class TrainingPlan:
    """All hybrids of a number of devices.

    Attributes:
        training: The decoder, the batch and the hardware.
        devices: Number of devices.
        layouts: Layouts that can run, the best first.
        refused: Layouts that cannot.
    """

    training: TrainingInput
    devices: int
    layouts: tuple[TrainingPrediction, ...]
    refused: tuple[RefusedHybrid, ...]

    @property
    def best(self) -> TrainingPrediction:
        """The fastest layout; of those that tie, the one with the least memory.

        Raises:
            RequestError: No layout can run.
        """
        if not self.layouts:
            least = self.refused[-1]
            raise RequestError(
                f"no layout of devices={self.devices} can train sequence_length="
                f"{self.training.sequence}: {least.layout.name} {least.reason}; take more devices, "
                "a shorter sequence, or leave out --ring-degree or another fixed degree"
            )
        return self.layouts[0]


def predict(
    training: TrainingInput, layout: TrainingLayout, recompute: Recompute
) -> TrainingPrediction:
    """Predict one hybrid, whether or not it fits in memory."""
    return TrainingPrediction(
        training,
        layout,
        recompute,
        Step(training, layout, recompute).time(),
        plan_memory(training, layout, recompute),
    )


def least_recompute(training: TrainingInput, layout: TrainingLayout) -> Recompute | None:
    """The least recomputation with which a layout fits in memory; None if it never does."""
    for recompute in RECOMPUTE:
        if missing_bytes(training, layout, recompute) <= 0:
            return recompute
    return None


def missing_bytes(training: TrainingInput, layout: TrainingLayout, recompute: Recompute) -> float:
    """Bytes that a rank needs and its device lacks; negative if it fits."""
    return plan_memory(training, layout, recompute).total - available_bytes(training, layout)


def available_bytes(training: TrainingInput, layout: TrainingLayout) -> float:
    """Bytes of memory that a rank has: its device's, or its part of a host that ranks share.
    Infinite if the profile does not state them."""
    hardware = training.hardware
    if hardware.memory_bytes is None:
        return float("inf")
    ranks = 1 if hardware.device == "cuda" else min(layout.world_size, hardware.devices_per_node)
    return hardware.memory_bytes.value / ranks


def make_training_plan(
    training: TrainingInput,
    devices: int,
    *,
    wanted: Callable[[TrainingLayout], bool] = lambda _: True,
    recompute: Recompute | None = None,
) -> TrainingPlan:
    """Predict every hybrid of a number of devices.

    Args:
        training: The decoder, the batch and the hardware.
        devices: Number of devices.
        wanted: Whether a layout is of interest; others are neither predicted nor refused.
        recompute: What backward recomputes; the least that fits if None.

    Raises:
        LayoutError: There are too many devices, or no layout is wanted.
    """
    if devices > MAX_DEVICES:
        raise LayoutError(f"devices={devices}: plans are made for {MAX_DEVICES} at most")
    candidates = [layout for layout in layouts(devices) if wanted(layout)]
    if not candidates:
        raise LayoutError(
            f"no layout of devices={devices} is wanted: want others, or plan more devices"
        )
    fitting: list[TrainingPrediction] = []
    refused: list[tuple[float, RefusedHybrid]] = []
    for layout in candidates:
        reason = broken_rule(training, layout)
        if reason is not None:
            refused.append((float("inf"), RefusedHybrid(layout, reason)))
            continue
        choice = least_recompute(training, layout) if recompute is None else recompute
        missing = missing_bytes(training, layout, choice or "full")
        if choice is None or missing > 0:
            refused.append(
                (missing, RefusedHybrid(layout, _memory_reason(training, layout, missing)))
            )
        else:
            fitting.append(predict(training, layout, choice))
    refused.sort(key=lambda each: -each[0])  # the closest to fitting comes last
    return TrainingPlan(
        training, devices, tuple(_best_first(fitting)), tuple(each for _, each in refused)
    )


def broken_rule(training: TrainingInput, layout: TrainingLayout) -> str | None:
    """The rule that keeps a layout from running, whatever the memory; None if there is none."""
    config, tensor = training.config, layout.tensor
    for name, count in (
        ("KV heads", config.num_key_value_heads),
        ("heads", config.num_attention_heads),
        ("columns of the MLP", config.intermediate_size),
    ):
        if count % tensor:
            return f"tensor degree {tensor} does not divide {count} {name}"
    if layout.ulysses > config.num_attention_heads // tensor:
        return (
            f"Ulysses x tensor degree {layout.ulysses * tensor} leaves ranks without heads: there "
            f"are {config.num_attention_heads}"
        )
    if layout.pipeline > config.num_hidden_layers:
        return f"pipeline degree {layout.pipeline} exceeds {config.num_hidden_layers} blocks"
    if training.batch % layout.data:
        return f"data degree {layout.data} does not divide a batch of {training.batch}"
    if layout.dims.sequence_degree > training.sequence:
        return f"{layout.dims.sequence_degree} ranks share {training.sequence} tokens"
    return None


def _memory_reason(training: TrainingInput, layout: TrainingLayout, missing: float) -> str:
    available = available_bytes(training, layout)
    return (
        f"needs {(available + missing) / 2**30:.1f} GiB a rank and there are "
        f"{available / 2**30:.1f}: {missing / 2**30:.1f} too much"
    )


def _best_first(predictions: Sequence[TrainingPrediction]) -> list[TrainingPrediction]:
    """Predictions by rising time, led by the one with least memory of those that tie."""
    ordered = sorted(predictions, key=lambda each: each.time.seconds)
    if not ordered:
        return []
    ties = [p for p in ordered if p.time.seconds <= _TIE_RATIO * ordered[0].time.seconds]
    best = min(ties, key=lambda each: each.memory.total)
    return [best, *(each for each in ordered if each is not best)]
