"""Which layouts a request can run in, how they compare, and which is best."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from longtake.configs.engine import EngineConfig
from longtake.configs.hardware import Dtype
from longtake.configs.parallel import ParallelConfig
from longtake.engine.planning.prediction import Prediction, Setting, predict
from longtake.errors import LayoutError, RequestError
from longtake.parallel import ParallelDims
from longtake.pipelines.spec import ModelSpec

logger = logging.getLogger(__name__)

MAX_RANKS = 1024
"""As many as plans are made for: what every rank sends to every other is added up."""

_AS_FAST = 1.005
"""What a plan cannot tell apart."""

_OTHER_COUNTS = (2, 4, 8, 16, 32, 64, 128)


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
    """

    setting: Setting
    devices: int
    alone: Prediction
    layouts: tuple[Prediction, ...]
    refused: tuple[Refused, ...]

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
            f"{self.refused[0].reason}; {_what_fits(self)}"
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
            prediction = predict(setting, dims, shard_weights=shard)
            reason = misfit(setting, prediction)
            if reason is None:
                layouts.append(prediction)
            else:
                refused.append(Refused(prediction.name, reason))
    layouts = best_first(layouts)
    refused.sort(key=lambda each: each.reason.startswith("has no"))
    alone = predict(setting, ParallelDims())
    return Plan(setting, devices, alone, tuple(layouts), tuple(refused))


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
        return _warned(busy[0], num_heads), f"not planned: more than {MAX_RANKS} ranks"
    predicted = [predict(setting, dims, shard_weights=asked.shard_weights) for dims in found]
    able = [each for each in predicted if misfit(setting, each) is None]
    best, *others = [*best_first(able), *best_first(p for p in predicted if p not in able)]
    if not able:
        logger.warning("%s may run out of memory: %s", best.name, misfit(setting, best))
    if others:
        why = (
            f"the best of {len(found)}: {_seconds(best.step.seconds)} a step predicted, and "
            f"{_seconds(others[0].step.seconds)} with {others[0].name}, the next"
        )
    else:
        why = "one rank" if devices == 1 else "the only one that devices and degrees allow"
    return _warned(best.dims, num_heads), why


def dtypes(config: EngineConfig, spec: ModelSpec, device: str) -> tuple[Dtype, Dtype]:
    """The dtypes of weights and activations, and of the decoder, that an engine will have.

    Args:
        device: "cuda" or "cpu".
    """
    if config.dtype != "auto":
        dtype: Dtype = config.dtype
    else:
        dtype = "bfloat16" if device == "cuda" else "float32"
    if config.vae_dtype != "auto":
        return dtype, config.vae_dtype
    return dtype, spec.defaults.vae_dtype or dtype


def best_first(predictions: Iterable[Prediction]) -> list[Prediction]:
    """The fastest first; but of those that are as fast, as far as a plan can tell, the one that
    sends least, and of these the one with fewer rounds of exchange."""
    ordered = sorted(predictions, key=lambda each: each.rendering_s)
    if not ordered:
        return []
    near = [p for p in ordered if p.rendering_s <= _AS_FAST * ordered[0].rendering_s]
    best = min(near, key=lambda each: (sum(each.step_bytes), each.dims.ring_degree))
    return [best, *(each for each in ordered if each is not best)]


def candidates(
    asked: ParallelConfig, devices: int, *, num_heads: int, true_cfg: bool
) -> list[ParallelDims]:
    """Every layout of so many ranks with the degrees that were asked for, one at least.

    Raises:
        LayoutError: the degrees do not multiply to the devices, or there is no second branch.
    """
    if asked.cfg_degree == 2 and not true_cfg:
        raise LayoutError(
            "cfg_degree=2 without true CFG: there is no second branch to compute beside the first; "
            "pass true_cfg_scale above 1 and a negative_prompt, or leave cfg_degree at 1"
        )
    branches = [1, 2] if true_cfg else [1]
    found = [dims for dims in _factored(devices) if dims.cfg_degree in branches]
    found = [dims for dims in found if _as_asked(dims, asked)]
    if not found:
        raise LayoutError(_misfit(asked, devices, num_heads))
    return found


def check_degrees(asked: ParallelConfig, devices: int, *, num_heads: int) -> None:
    """Refuse degrees that fit no request at all on so many devices.

    Raises:
        LayoutError: they do not multiply to the devices.
    """
    if not any(_as_asked(dims, asked) for dims in _factored(devices)):
        raise LayoutError(_misfit(asked, devices, num_heads))


def misfit(setting: Setting, prediction: Prediction) -> str | None:
    """Why a layout does not fit in memory; None if it does, or if that is not known."""
    limit = setting.hardware.memory_bytes
    if limit is None:
        return None
    there, needed, each = limit.value, float(prediction.memory.total), "a rank"
    if setting.hardware.device == "cpu":  # the ranks of a host share its memory
        ranks = min(prediction.dims.world_size, setting.hardware.devices_per_node)
        needed, each = needed + (ranks - 1) * prediction.memory.other_ranks, "a host"
    if needed <= there:
        return None
    return (
        f"needs {needed / 2**30:.1f} GiB {each} and there are {there / 2**30:.1f}: "
        f"{(needed - there) / 2**30:.1f} too much"
    )


def _what_fits(plan: Plan) -> str:
    """A device count, or else a size, with which the request would run."""
    setting = plan.setting
    for count in _OTHER_COUNTS:
        dims = ParallelDims(ulysses_degree=count)
        if (
            count > plan.devices
            and misfit(setting, predict(setting, dims, shard_weights=True)) is None
        ):
            return f"try devices={count} with shard_weights"
    dims = ParallelDims(ulysses_degree=plan.devices)
    for num_frames, height, width in _smaller(setting):
        update = {"num_frames": num_frames, "height": height, "width": width}
        smaller = replace(setting, request=setting.request.model_copy(update=update))
        if misfit(smaller, predict(smaller, dims, shard_weights=plan.devices > 1)) is None:
            return f"try {num_frames} frames of {width}x{height}"
    return "no number of such devices holds this model: try ones with more memory"


def _smaller(setting: Setting) -> Iterator[tuple[int, int, int]]:
    """Fewer frames, down to one; then smaller ones."""
    spec, request = setting.spec, setting.request
    frames, size = spec.frames_multiple, spec.size_multiple
    count = (request.num_frames - 1) // frames
    while count > 0:
        count //= 2
        yield frames * count + 1, request.height, request.width
    height, width = request.height, request.width
    while max(height, width) > size:
        height, width = (max(size, length // 2 // size * size) for length in (height, width))
        yield 1, height, width


def _factored(devices: int) -> list[ParallelDims]:
    """Every layout of so many ranks: branches side by side last, the largest Ulysses first."""
    return [
        ParallelDims(cfg_degree=cfg, ring_degree=devices // cfg // ulysses, ulysses_degree=ulysses)
        for cfg in (1, 2)
        if devices % cfg == 0
        for ulysses in range(devices // cfg, 0, -1)
        if devices // cfg % ulysses == 0
    ]


def _as_asked(dims: ParallelDims, asked: ParallelConfig) -> bool:
    pairs = (
        (asked.cfg_degree, dims.cfg_degree),
        (asked.ring_degree, dims.ring_degree),
        (asked.ulysses_degree, dims.ulysses_degree),
    )
    return all(wanted in (None, degree) for wanted, degree in pairs)


def _side_by_side(setting: Setting, asked: ParallelConfig, devices: int) -> list[ParallelDims]:
    """Layouts for which there is no second branch."""
    if setting.request.uses_true_cfg:
        return []
    return [dims for dims in _factored(devices) if dims.cfg_degree == 2 and _as_asked(dims, asked)]


def _without_branch(dims: ParallelDims) -> Refused:
    return Refused(dims.name, "has no second branch to compute: true_cfg_scale is not above 1")


def _warned(dims: ParallelDims, num_heads: int) -> ParallelDims:
    if dims.ulysses_degree > num_heads:
        logger.warning(
            "ulysses_degree=%d on %d heads: %d ranks of each group have no head and idle in "
            "attention; raise ring_degree instead",
            dims.ulysses_degree,
            num_heads,
            dims.ulysses_degree - num_heads,
        )
    return dims


def _misfit(asked: ParallelConfig, devices: int, num_heads: int) -> str:
    given = {
        name: degree
        for name in ("cfg_degree", "ring_degree", "ulysses_degree")
        if (degree := getattr(asked, name)) is not None
    }
    words = " x ".join(f"{name}={degree}" for name, degree in given.items())
    needs = 1
    for degree in given.values():
        needs *= degree
    whole = len(given) == 3 or {"ring_degree", "ulysses_degree"} <= given.keys()
    cfg = asked.cfg_degree or 1
    cfg = cfg if devices % cfg == 0 else 1
    most = max(u for u in range(1, num_heads + 1) if devices // cfg % u == 0)
    works = f"ring_degree={devices // cfg // most} x ulysses_degree={most}"
    if "cfg_degree" in given:
        works = f"cfg_degree={cfg} x {works}"
    return (
        f"{words} needs {'' if whole else 'a multiple of '}{needs} ranks, got devices={devices}: "
        f"try devices={needs}, or {works}"
    )


def _seconds(value: float) -> str:
    return f"{value:.3g} s"
