"""Which layout each request runs in, and how long it will take, by the planner."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from operator import attrgetter
from typing import Any, TypeVar

from longtake.configs.engine import EngineConfig
from longtake.configs.hardware import Hardware
from longtake.configs.request import ResolvedRequest
from longtake.engine.dtypes import compute_dtype_name, vae_dtype_name
from longtake.engine.planning.fits import misfit
from longtake.engine.planning.hardware import hardware_here
from longtake.engine.planning.planner import choose_dims
from longtake.engine.planning.prediction import Prediction, Setting, predict
from longtake.parallel import ParallelDims
from longtake.pipelines.spec import ModelSpec

_SHAPES_KEPT = 1000
"""Of requests, whose layouts are remembered."""

_NOT_PLANNED = frozenset(
    "prompt negative_prompt image image_sha256 sigmas prompt_template seed".split()
)
"""What of a request no plan depends on, and each of a batch's has for itself."""

_Shape = tuple[Any, ...]
_shape_of: Callable[[ResolvedRequest], _Shape] = attrgetter(
    *(name for name in ResolvedRequest.model_fields if name not in _NOT_PLANNED)
)
"""What a plan depends on."""


ValueT = TypeVar("ValueT")


class LayoutChooser:
    """Chooses once for all requests of one shape.

    Args:
        config: with its dtypes chosen.
        spec: of the model.
        device_type: "cpu" or "cuda".
    """

    def __init__(self, config: EngineConfig, spec: ModelSpec, device_type: str) -> None:
        self._config = config
        self._spec = spec
        self._device_type = device_type
        self._chosen: dict[_Shape, tuple[ParallelDims, str]] = {}
        self._predicted: dict[_Shape, Prediction] = {}

    def choose(self, request: ResolvedRequest) -> tuple[ParallelDims, str]:
        """The layout of a request, by the planner where degrees are left out, and why this one.

        Raises:
            LayoutError: the degrees fit no such number of devices, or there is no second branch.
        """
        like = _shape_of(request)
        found = self._chosen.get(like)
        if found is None:
            config = self._config
            found = choose_dims(self._setting(request), config.parallel, config.devices)
            _keep(self._chosen, like, found)
        return found

    def predicted(self, request: ResolvedRequest) -> Prediction:
        """How long a request takes in its layout."""
        like = _shape_of(request)
        found = self._predicted.get(like)
        if found is None:
            dims, _ = self.choose(request)
            split = self._config.parallel.shard_weights
            found = predict(self._setting(request), dims, shard_weights=split)
            _keep(self._predicted, like, found)
        return found

    def misfit(self, request: ResolvedRequest) -> str | None:
        """Why a request does not fit in memory, by the plan; None if it does."""
        dims, _ = self.choose(request)
        split = self._config.parallel.shard_weights
        return misfit(self._setting(request), dims, shard_weights=split)

    def _setting(self, request: ResolvedRequest) -> Setting:
        return Setting(
            spec=self._spec,
            hardware=self._hardware,
            request=request,
            dtype=compute_dtype_name(self._config, self._device_type),
            vae_dtype=vae_dtype_name(self._config, self._spec, self._device_type),
            text_tokens=self._spec.text_tokens(request),
        )

    @cached_property
    def _hardware(self) -> Hardware:
        return hardware_here(self._device_type)


def _keep(values: dict[_Shape, ValueT], like: _Shape, value: ValueT) -> None:
    """Remember a value, and not ever more of them: clients think up any shape."""
    if len(values) >= _SHAPES_KEPT:
        values.clear()
    values[like] = value
