"""Chooses the layout of each request, and predicts how long it takes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import cached_property
from operator import attrgetter
from typing import Any, NamedTuple, TypeVar

from longtake.configs.engine import EngineConfig
from longtake.configs.hardware import Hardware
from longtake.configs.parallel import ParallelConfig
from longtake.configs.request import PICTURES, ResolvedRequest
from longtake.engine.planning.hardware import hardware_here
from longtake.engine.planning.layouts import MAX_RANKS
from longtake.engine.planning.memory import out_of_memory_reason, place_text
from longtake.engine.planning.plan_input import PlanInput
from longtake.engine.planning.prediction import Prediction, best_first, layout_name, predict
from longtake.engine.planning.weights.places import Placement, Places
from longtake.parallel import ParallelDims
from longtake.pipelines.spec import ModelSpec

logger = logging.getLogger(__name__)

_CACHE_SIZE = 1000
"""Request shapes whose layouts are cached."""

_IRRELEVANT_FIELDS = frozenset(
    (
        *("prompt", "negative_prompt", "sigmas", "seed", "lora", "lora_sha256", "lora_partial"),
        *(each for name in PICTURES for each in (name, f"{name}_sha256")),
    )
)
"""Request fields whose values no plan depends on."""

_RESIDENT = Places.only(Placement())

_Shape = tuple[Any, ...]
_planned_values: Callable[[ResolvedRequest], _Shape] = attrgetter(
    *(name for name in ResolvedRequest.model_fields if name not in _IRRELEVANT_FIELDS)
)

ValueT = TypeVar("ValueT")


class Choice(NamedTuple):
    """What a request runs in.

    Attributes:
        dims: The layout.
        placement: Where the weights live.
        why: The reason for both.
    """

    dims: ParallelDims
    placement: Placement
    why: str

    @property
    def name(self) -> str:
        """The layout, and the place of weights that are not resident."""
        return layout_name(self.dims, self.placement)


class LayoutChooser:
    """Plans once for all requests of one shape.

    Args:
        config: The engine's configuration, with its dtypes resolved.
        spec: The model's specification.
        device_type: "cpu" or "cuda".
        engines: Engines that share this host.
    """

    def __init__(
        self, config: EngineConfig, spec: ModelSpec, device_type: str, engines: int = 1
    ) -> None:
        self._engines = engines
        self._config = config
        self._spec = spec
        self._device_type = device_type
        self._places = Places.of(config)
        self._chosen: dict[_Shape, Choice] = {}
        self._predictions: dict[_Shape, Prediction] = {}

    def choose(self, request: ResolvedRequest) -> Choice:
        """The layout of a request and the places of weights, and the reason for them. The planner
        picks open degrees and places.

        Raises:
            LayoutError: The degrees do not fit the number of devices, or there is no second pass.
        """
        shape = _shape_of(request)
        chosen = self._chosen.get(shape)
        if chosen is None:
            config = self._config
            chosen = choose_layout(
                self._plan_input(request), config.parallel, config.devices, self._places
            )
            _store(self._chosen, shape, chosen)
        return chosen

    def predicted(self, request: ResolvedRequest) -> Prediction:
        """The prediction for a request in its layout."""
        shape = _shape_of(request)
        prediction = self._predictions.get(shape)
        if prediction is None:
            chosen = self.choose(request)
            prediction = predict(self._plan_input(request), chosen.dims, chosen.placement)
            _store(self._predictions, shape, prediction)
        return prediction

    def out_of_memory_reason(self, request: ResolvedRequest) -> str | None:
        """Why a request will not fit in memory according to the plan; None if it fits."""
        chosen = self.choose(request)
        return out_of_memory_reason(self._plan_input(request), chosen.dims, chosen.placement)

    def _plan_input(self, request: ResolvedRequest) -> PlanInput:
        return PlanInput.for_engine(self._config, self._spec, self._hardware, request)

    @cached_property
    def _hardware(self) -> Hardware:
        return hardware_here(self._device_type).shared_by(self._engines)


def choose_layout(
    plan_input: PlanInput,
    requested: ParallelConfig,
    devices: int,
    places: Places = _RESIDENT,
) -> Choice:
    """The best layout that the requested degrees allow, with weights in the best of the allowed
    places, and the reason for them.

    Memory refuses nothing here: free memory is known only once a rank has started. If nothing fits
    according to the plan, what needs the least memory is chosen, and a warning logged.

    Raises:
        LayoutError: The degrees do not fit the number of devices, or there is no second pass.
    """
    num_heads = plan_input.spec.num_heads
    layouts = plan_input.layouts(requested, devices)
    places = places.on(devices)
    if devices > MAX_RANKS:
        busy = [dims for dims in layouts if dims.ulysses_degree <= num_heads] or layouts
        _warn_of_idle_ranks(busy[0], requested, num_heads)
        placement = Placement(places.weights[0], places.text[0])
        return Choice(busy[0], placement, f"not planned: more than {MAX_RANKS} ranks")
    fitting, others = _candidates(plan_input, layouts, places)
    best, *rest = best_first(fitting) or sorted(others, key=lambda each: each.memory.total)
    reason = out_of_memory_reason(plan_input, best.dims, best.placement)
    if reason is not None:
        logger.warning("%s may run out of memory: %s", best.name, reason)
    _warn_of_idle_ranks(best.dims, requested, num_heads)
    why = _reason(plan_input, best, rest, single=devices == 1)
    return Choice(best.dims, best.placement, why)


def _candidates(
    plan_input: PlanInput, layouts: Sequence[ParallelDims], places: Places
) -> tuple[list[Prediction], list[Prediction]]:
    """Predictions that fit in memory, and those that do not.

    Where whole weights fit no other place is faster, and none is predicted.
    """
    fitting: list[Prediction] = []
    others: list[Prediction] = []
    for dims in layouts:
        for weights in places.weights:
            placement, reason = place_text(plan_input, dims, weights, places.text)
            predicted = predict(plan_input, dims, placement)
            if reason is not None:
                others.append(predicted)
                continue
            fitting.append(predicted)
            if weights == "resident" and not predicted.tight:
                break
    return fitting, others


def _reason(
    plan_input: PlanInput, best: Prediction, others: Sequence[Prediction], *, single: bool
) -> str:
    """Why a prediction is the one to take: its cost, and what would be faster."""
    taken = f"{best.step.seconds:.3g} s a step predicted"
    plain = best.placement == Placement()
    if not plain:
        taken = f"{best.placement.description}, {taken}, {_price(plan_input, best)}"
    if others:
        next_one = others[0]
        taken += f", and {next_one.step.seconds:.3g} s with {next_one.name}, the next"
        return f"the best of {1 + len(others)}: {taken}"
    if plain:
        return "one rank" if single else "the only one that devices and degrees allow"
    return taken


def _price(plan_input: PlanInput, best: Prediction) -> str:
    """The memory that a prediction takes, and what resident weights would save and need."""
    whole = predict(plan_input, best.dims)
    saved = f"{100 * (1 - whole.step.seconds / best.step.seconds):.1f} %"
    return (
        f"{best.memory.total / 2**30:.1f} GiB a rank; all resident would need "
        f"{whole.memory.total / 2**30:.1f} and take {'no' if saved == '0.0 %' else saved} less time"
    )


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
