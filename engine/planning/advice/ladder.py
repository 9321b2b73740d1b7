"""The ways to run one request on the devices at hand: places of weights, and fewer bits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import get_args

from longtake.configs.fields.weights import StorageDtype, WeightStorage
from longtake.configs.parallel import ParallelConfig
from longtake.engine.planning.memory import place_text
from longtake.engine.planning.plan_input import PlanInput
from longtake.engine.planning.prediction import Prediction, best_first, predict
from longtake.engine.planning.weights.places import Places

LOSSES: Mapping[StorageDtype, str] = {
    "float8": "weights rounded to 8 bits",
    "int8": "weights rounded to 8 bits",
    "nf4": "weights rounded to 4 bits",
}
"""What each storage type loses; docs/explanation/exactness.md has measurements."""


@dataclass(frozen=True)
class Rung:
    """One way to run a request.

    Attributes:
        prediction: The best layout of this way; of those that do not fit, the one that needs the
            least memory.
        storage: What weights are stored as; None for the dtype of compute.
        shortage: Why it does not fit in memory; None if it fits.
    """

    prediction: Prediction
    storage: WeightStorage | None
    shortage: str | None

    @property
    def name(self) -> str:
        """The layout, the place of weights, and their storage type."""
        return f"{self.prediction.name}{f' {self.storage}' if self.storage else ''}"

    @property
    def loss(self) -> str:
        """What it loses: nothing if exact."""
        if self.storage is None or self.storage == "gguf":
            return "exact"
        return LOSSES[self.storage]


def ladder(plan_input: PlanInput, requested: ParallelConfig, devices: int) -> tuple[Rung, ...]:
    """All exact places of weights, and the fastest of each storage type: those that fit first,
    exact ones before others, the fastest first.

    Args:
        plan_input: The model, the request and the hardware; its storage type is one of several.
        requested: The requested degrees.
        devices: Number of ranks.
    """
    exact = replace(plan_input, storage_dtype=None)
    every = Places().on(devices)
    rungs = [
        _rung(exact, requested, devices, Places((weights,), every.text))
        for weights in every.weights
    ]
    rungs += [
        _rung(replace(exact, storage_dtype=storage), requested, devices, every)
        for storage in _storage_types(plan_input)
    ]

    def order(rung: Rung) -> tuple[bool, bool, float]:
        fits = rung.shortage is None
        least = rung.prediction.step.seconds if fits else rung.prediction.memory.total
        return not fits, rung.loss != "exact", least

    return tuple(sorted(rungs, key=order))


def _storage_types(plan_input: PlanInput) -> Iterator[WeightStorage]:
    if plan_input.spec.gguf_value_bytes:
        yield "gguf"
    yield from get_args(StorageDtype)


def _rung(plan_input: PlanInput, requested: ParallelConfig, devices: int, places: Places) -> Rung:
    """The best layout with weights in one of these places."""
    layouts = plan_input.layouts(requested, devices)
    placed = [
        (dims, *place_text(plan_input, dims, weights, places.text))
        for dims in layouts
        for weights in places.weights
    ]
    fitting = [predict(plan_input, dims, place) for dims, place, reason in placed if not reason]
    if fitting:
        return Rung(best_first(fitting)[0], plan_input.storage_dtype, None)
    others = [(predict(plan_input, dims, place), reason) for dims, place, reason in placed]
    least, reason = min(others, key=lambda each: each[0].memory.total)
    return Rung(least, plan_input.storage_dtype, reason)
