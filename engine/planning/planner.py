"""Which layouts a request can run in, how they compare, and which is best."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass

from longtake.configs.parallel import ParallelConfig
from longtake.engine.planning.fits import misfit, way_out
from longtake.engine.planning.layouts import as_asked, candidates, factored
from longtake.engine.planning.prediction import Prediction, Setting, layout_name, predict
from longtake.errors import LayoutError, RequestError
from longtake.parallel import ParallelDims

logger = logging.getLogger(__name__)

MAX_RANKS = 1024
"""As many as plans are made for: what every rank sends to every other is added up."""

_AS_FAST = 1.005
"""What a plan cannot tell apart."""


@dataclass(frozen=True)
class Refused:
    """A layout that cannot run, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Plan:
    """All layouts of one request on so many ranks.

    Attributes:
        devices: ranks.
        alone: the same on one rank, whether or not it fits; what efficiency is reckoned against.
        layouts: that can run, the best first.
        refused: that cannot.
        way_out: what would run, where none can.
    """

    setting: Setting
    devices: int
    alone: Prediction
    layouts: tuple[Prediction, ...]
    refused: tuple[Refused, ...]
    way_out: str = ""

    @property
    def best(self) -> Prediction:
        """The best: see :func:`best_first`.

        Raises:
            RequestError: none can run; says what would.
        """
        if not self.layouts:
            raise RequestError(self._way_out())
        return self.layouts[0]

    def efficiency(self, prediction: Prediction) -> float:
        """Of all ranks' time, the part that one rank alone would need."""
        return self.alone.rendering_s / (prediction.dims.world_size * prediction.rendering_s)

    def _way_out(self) -> str:
        """Why nothing runs, in one line, and what would."""
        return (
            f"no layout of devices={self.devices} can run: {self.refused[0].name} "
            f"{self.refused[0].reason}; {self.way_out}"
        )


def make_plan(
    setting: Setting, asked: ParallelConfig, devices: int, *, shard_weights: bool | None = None
) -> Plan:
    """Predict every layout that the devices and the degrees that were asked for allow.

    Args:
        shard_weights: only with split weights, only with whole ones, or both if None.

    Raises:
        LayoutError: the degrees fit no such number of devices, or there are too many.
    """
    if devices > MAX_RANKS:
        raise LayoutError(f"devices={devices}: plans are made for {MAX_RANKS} at most")
    choices = [False, True] if shard_weights is None else [shard_weights]
    if devices == 1:
        choices = [False]
    layouts: list[Prediction] = []
    refused = [_without_branch(dims) for dims in _side_by_side(setting, asked, devices)]
    for dims in candidates(
        asked,
        devices,
        num_heads=setting.spec.num_heads,
        true_cfg=setting.request.uses_true_cfg,
    ):
        for shard in choices:
            reason = misfit(setting, dims, shard_weights=shard)
            if reason is None:
                layouts.append(predict(setting, dims, shard_weights=shard))
            else:
                refused.append(Refused(layout_name(dims, shard_weights=shard), reason))
    refused.sort(key=lambda each: each.reason.startswith("has no"))
    return Plan(
        setting,
        devices,
        predict(setting, ParallelDims()),
        tuple(best_first(layouts)),
        tuple(refused),
        "" if layouts else way_out(setting, asked, devices, choices),
    )


def choose_dims(setting: Setting, asked: ParallelConfig, devices: int) -> tuple[ParallelDims, str]:
    """The layout of one request, and why: the best of those that the degrees allow.

    Memory refuses nothing here: free memory is known once a rank is there. What does not fit by
    the plan comes after what does, and is warned of.

    Raises:
        LayoutError: the degrees fit no such number of devices, or there is no second branch.
    """
    num_heads = setting.spec.num_heads
    found = candidates(asked, devices, num_heads=num_heads, true_cfg=setting.request.uses_true_cfg)
    if devices > MAX_RANKS:
        busy = [dims for dims in found if dims.ulysses_degree <= num_heads] or found
        return _warned(busy[0], asked, num_heads), f"not planned: more than {MAX_RANKS} ranks"
    predicted = [predict(setting, dims, shard_weights=asked.shard_weights) for dims in found]
    misfits = {
        dims.name: misfit(setting, dims, shard_weights=asked.shard_weights) for dims in found
    }
    able = [each for each in predicted if misfits[each.dims.name] is None]
    best, *others = [*best_first(able), *best_first(p for p in predicted if p not in able)]
    if not able:
        logger.warning("%s may run out of memory: %s", best.name, misfits[best.dims.name])
    if others:
        why = (
            f"the best of {len(found)}: {_seconds(best.step.seconds)} a step predicted, and "
            f"{_seconds(others[0].step.seconds)} with {others[0].name}, the next"
        )
    else:
        why = "one rank" if devices == 1 else "the only one that devices and degrees allow"
    return _warned(best.dims, asked, num_heads), why


def best_first(predictions: Iterable[Prediction]) -> list[Prediction]:
    """The fastest first; but of those that are as fast, as far as a plan can tell, the one that
    sends least, and of these the one with fewer rounds of exchange."""
    ordered = sorted(predictions, key=lambda each: each.rendering_s)
    if not ordered:
        return []
    near = [p for p in ordered if p.rendering_s <= _AS_FAST * ordered[0].rendering_s]
    best = min(near, key=lambda each: (sum(each.step_bytes), each.dims.ring_degree))
    return [best, *(each for each in ordered if each is not best)]


def _side_by_side(setting: Setting, asked: ParallelConfig, devices: int) -> list[ParallelDims]:
    """Layouts for which there is no second branch."""
    if setting.request.uses_true_cfg:
        return []
    return [dims for dims in factored(devices) if dims.cfg_degree == 2 and as_asked(dims, asked)]


def _without_branch(dims: ParallelDims) -> Refused:
    return Refused(dims.name, "has no second branch to compute: true_cfg_scale is not above 1")


def _warned(dims: ParallelDims, asked: ParallelConfig, num_heads: int) -> ParallelDims:
    idle = dims.ulysses_degree - num_heads
    if idle > 0:
        logger.warning(
            "ulysses_degree=%d on %d heads: of each group, ranks without a head idle in attention "
            "(%d); %s",
            dims.ulysses_degree,
            num_heads,
            idle,
            "raise ring_degree instead"
            if asked.ulysses_degree
            else "no layout of this request keeps all busy: take fewer devices",
        )
    return dims


def _seconds(value: float) -> str:
    return f"{value:.3g} s"
