"""Predicts every layout that a request can run in, and ranks them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter

from longtake.configs.parallel import ParallelConfig
from longtake.engine.planning.advice.ladder import Rung, ladder
from longtake.engine.planning.advice.suggestions import suggest
from longtake.engine.planning.layouts import (
    MAX_RANKS,
    NO_SECOND_PASS,
    matching_layouts,
)
from longtake.engine.planning.memory import place_text, plan_memory
from longtake.engine.planning.plan_input import PlanInput
from longtake.engine.planning.prediction import Prediction, best_first, layout_name, predict
from longtake.engine.planning.weights.places import Places
from longtake.errors import LayoutError, RequestError
from longtake.parallel import ParallelDims

_ANY_PLACE = Places()


@dataclass(frozen=True)
class RefusedLayout:
    """A layout that cannot run, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Plan:
    """All layouts of one request on a number of ranks.

    Attributes:
        plan_input: The model, the request and the hardware.
        devices: Number of ranks.
        single_rank: The prediction for one rank, whether or not it fits: the base of efficiency.
        layouts: Layouts that can run, the best first.
        refused: Layouts that cannot run; of those that do not fit, the smallest first.
        ladder: All ways to run it, exact ones first; see :func:`.ladder.ladder`.
        suggestion: A change with which the request would fit; empty if a layout can run.
    """

    plan_input: PlanInput
    devices: int
    single_rank: Prediction
    layouts: tuple[Prediction, ...]
    refused: tuple[RefusedLayout, ...]
    ladder: tuple[Rung, ...]
    suggestion: str = ""

    @property
    def best(self) -> Prediction:
        """The best layout, by :func:`best_first`.

        Raises:
            RequestError: No layout can run; the message suggests what would.
        """
        if not self.layouts:
            raise RequestError(
                f"no layout of devices={self.devices} can run: {self.refused[0].name} "
                f"{self.refused[0].reason}; {self.suggestion}"
            )
        return self.layouts[0]

    def efficiency(self, prediction: Prediction) -> float:
        """Parallel efficiency: time on one rank over ranks times time on all of them."""
        ranks = prediction.dims.world_size
        return self.single_rank.rendering_s / (ranks * prediction.rendering_s)


def make_plan(
    plan_input: PlanInput,
    requested: ParallelConfig,
    devices: int,
    places: Places = _ANY_PLACE,
) -> Plan:
    """Predict every layout that the devices and the requested degrees allow, with weights in every
    allowed place of the transformer, and in the fastest place of the text encoders that fits.

    Args:
        plan_input: The model, the request and the hardware.
        requested: The requested degrees.
        devices: Number of ranks.
        places: The allowed places of weights.

    Raises:
        LayoutError: The degrees do not fit the number of devices, or there are too many devices.
    """
    if devices > MAX_RANKS:
        raise LayoutError(f"devices={devices}: plans are made for {MAX_RANKS} at most")
    places = places.on(devices)
    candidates = plan_input.layouts(requested, devices)
    layouts, refused = _predict_fitting(plan_input, candidates, places)
    refused += [
        RefusedLayout(dims.name, NO_SECOND_PASS)
        for dims in matching_layouts(requested, devices)
        if dims not in candidates
    ]
    return Plan(
        plan_input,
        devices,
        predict(plan_input, ParallelDims()),
        tuple(best_first(layouts)),
        tuple(refused),
        ladder(plan_input, requested, devices),
        "" if layouts else suggest(plan_input, requested, devices, places),
    )


def best_fitting(
    plan_input: PlanInput, requested: ParallelConfig, devices: int, places: Places = _ANY_PLACE
) -> Prediction | None:
    """The best layout of a plan; None if none fits. Arguments are those of :func:`make_plan`."""
    candidates = plan_input.layouts(requested, devices)
    fitting, _ = _predict_fitting(plan_input, candidates, places.on(devices))
    return best_first(fitting)[0] if fitting else None


def _predict_fitting(
    plan_input: PlanInput, candidates: Sequence[ParallelDims], places: Places
) -> tuple[list[Prediction], list[RefusedLayout]]:
    """Predictions of the layouts that fit in memory, and those that do not: what needs the least of
    a device's memory first."""
    fitting: list[Prediction] = []
    refused: list[tuple[int, RefusedLayout]] = []
    for dims, weights in itertools.product(candidates, places.weights):
        placement, reason = place_text(plan_input, dims, weights, places.text)
        if reason is None:
            fitting.append(predict(plan_input, dims, placement))
        else:
            needed = plan_memory(plan_input, dims, placement).total
            refused.append((needed, RefusedLayout(layout_name(dims, placement), reason)))
    return fitting, [layout for _, layout in sorted(refused, key=itemgetter(0))]
