"""Chooses the layout of each request, and predicts how long it takes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cached_property
from operator import attrgetter
from typing import Any, TypeVar

from longtake.configs.engine import EngineConfig
from longtake.configs.hardware import Hardware
from longtake.configs.parallel import ParallelConfig
from longtake.configs.request import PICTURES, ResolvedRequest
from longtake.engine.planning.hardware import hardware_here
from longtake.engine.planning.layouts import MAX_RANKS, candidate_layouts
from longtake.engine.planning.memory import out_of_memory_reason
from longtake.engine.planning.plan_input import PlanInput
from longtake.engine.planning.prediction import Prediction, best_first, predict
from longtake.parallel import ParallelDims
from longtake.pipelines.spec import ModelSpec

logger = logging.getLogger(__name__)

_CACHE_SIZE = 1000
"""Request shapes whose layouts are cached."""

_IRRELEVANT_FIELDS = frozenset(
    (
        *("prompt", "negative_prompt", "sigmas", "seed"),
        *(each for name in PICTURES for each in (name, f"{name}_sha256")),
    )
)
"""Request fields whose values no plan depends on."""

_Shape = tuple[Any, ...]
_planned_values: Callable[[ResolvedRequest], _Shape] = attrgetter(
    *(name for name in ResolvedRequest.model_fields if name not in _IRRELEVANT_FIELDS)
)

ValueT = TypeVar("ValueT")


class LayoutChooser:
    """Plans once for all requests of one shape.

    Args:
        config: The engine's configuration, with its dtypes resolved.
        spec: The model's specification.
        device_type: "cpu" or "cuda".
    """

    def __init__(self, config: EngineConfig, spec: ModelSpec, device_type: str) -> None:
        self._config = config
        self._spec = spec
        self._device_type = device_type
        self._chosen: dict[_Shape, tuple[ParallelDims, str]] = {}
        self._predictions: dict[_Shape, Prediction] = {}

    def choose(self, request: ResolvedRequest) -> tuple[ParallelDims, str]:
        """The layout of a request, and the reason for it. The planner picks open degrees.

        Raises:
            LayoutError: The degrees do not fit the number of devices, or there is no second pass.
        """
        shape = _shape_of(request)
        chosen = self._chosen.get(shape)
        if chosen is None:
            config = self._config
            chosen = choose_layout(self._plan_input(request), config.parallel, config.devices)
            _store(self._chosen, shape, chosen)
        return chosen

    def predicted(self, request: ResolvedRequest) -> Prediction:
        """The prediction for a request in its layout."""
        shape = _shape_of(request)
        prediction = self._predictions.get(shape)
        if prediction is None:
            dims, _ = self.choose(request)
            shard_weights = self._config.parallel.shard_weights
            prediction = predict(self._plan_input(request), dims, shard_weights=shard_weights)
            _store(self._predictions, shape, prediction)
        return prediction

    def out_of_memory_reason(self, request: ResolvedRequest) -> str | None:
        """Why a request will not fit in memory according to the plan; None if it fits."""
        dims, _ = self.choose(request)
        shard_weights = self._config.parallel.shard_weights
        return out_of_memory_reason(self._plan_input(request), dims, shard_weights=shard_weights)

    def _plan_input(self, request: ResolvedRequest) -> PlanInput:
        return PlanInput.for_engine(self._config, self._spec, self._hardware, request)

    @cached_property
    def _hardware(self) -> Hardware:
        return hardware_here(self._device_type)


def choose_layout(
    plan_input: PlanInput, requested: ParallelConfig, devices: int
) -> tuple[ParallelDims, str]:
    """The best layout that the requested degrees allow, and the reason for it.

    Memory refuses nothing here: free memory is known only once a rank has started. Layouts that do
    not fit according to the plan rank behind those that do, and choosing one logs a warning.

    Raises:
        LayoutError: The degrees do not fit the number of devices, or there is no second pass.
    """
    num_heads = plan_input.spec.num_heads
    layouts = candidate_layouts(
        requested, devices, num_heads=num_heads, num_passes=plan_input.num_passes
    )
    if devices > MAX_RANKS:
        busy = [dims for dims in layouts if dims.ulysses_degree <= num_heads] or layouts
        _warn_of_idle_ranks(busy[0], requested, num_heads)
        return busy[0], f"not planned: more than {MAX_RANKS} ranks"
    shard_weights = requested.shard_weights
    reasons = {
        dims: out_of_memory_reason(plan_input, dims, shard_weights=shard_weights)
        for dims in layouts
    }
    predictions = [predict(plan_input, dims, shard_weights=shard_weights) for dims in layouts]
    best, *others = [
        *best_first([each for each in predictions if reasons[each.dims] is None]),
        *best_first([each for each in predictions if reasons[each.dims] is not None]),
    ]
    if reasons[best.dims] is not None:
        logger.warning("%s may run out of memory: %s", best.name, reasons[best.dims])
    if others:
        reason = (
            f"the best of {len(layouts)}: {best.step.seconds:.3g} s a step predicted, and "
            f"{others[0].step.seconds:.3g} s with {others[0].name}, the next"
        )
    else:
        reason = "one rank" if devices == 1 else "the only one that devices and degrees allow"
    _warn_of_idle_ranks(best.dims, requested, num_heads)
    return best.dims, reason


def _warn_of_idle_ranks(dims: ParallelDims, requested: ParallelConfig, num_heads: int) -> None:
    idle = dims.ulysses_degree - num_heads
    if idle > 0:
        logger.warning(
            "ulysses_degree=%d on %d heads: in each Ulysses group, %d ranks without a head idle "
            "during attention; %s",
            dims.ulysses_degree,
            num_heads,
            idle,
            "raise ring_degree instead"
            if requested.ulysses_degree
            else "no layout of this request keeps all busy: take fewer devices",
        )


def _store(cache: dict[_Shape, ValueT], shape: _Shape, value: ValueT) -> None:
    """Cache a value; clients can send any number of shapes, so a full cache is cleared."""
    if len(cache) >= _CACHE_SIZE:
        cache.clear()
    cache[shape] = value


def _shape_of(request: ResolvedRequest) -> _Shape:
    """What a plan depends on: the values of fields, and which pictures are given."""
    return (*_planned_values(request), *map(request.gives, PICTURES))
