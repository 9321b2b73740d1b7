"""Which layouts so many ranks allow with the degrees that were asked for."""

from __future__ import annotations

from longtake.configs.parallel import ParallelConfig
from longtake.errors import LayoutError
from longtake.parallel import ParallelDims


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
    found = [dims for dims in factored(devices) if dims.cfg_degree in branches]
    found = [dims for dims in found if as_asked(dims, asked)]
    if not found:
        raise LayoutError(_misfit(asked, devices, num_heads))
    return found


def check_degrees(asked: ParallelConfig, devices: int, *, num_heads: int) -> None:
    """Refuse degrees that fit no request at all on so many devices.

    Raises:
        LayoutError: they do not multiply to the devices.
    """
    if not any(as_asked(dims, asked) for dims in factored(devices)):
        raise LayoutError(_misfit(asked, devices, num_heads))


def factored(devices: int) -> list[ParallelDims]:
    """Every layout of so many ranks: branches side by side last, the largest Ulysses first."""
    return [
        ParallelDims(cfg_degree=cfg, ring_degree=devices // cfg // ulysses, ulysses_degree=ulysses)
        for cfg in (1, 2)
        if devices % cfg == 0
        for ulysses in range(devices // cfg, 0, -1)
        if devices // cfg % ulysses == 0
    ]


def as_asked(dims: ParallelDims, asked: ParallelConfig) -> bool:
    """Whether a layout has the degrees that were asked for."""
    pairs = (
        (asked.cfg_degree, dims.cfg_degree),
        (asked.ring_degree, dims.ring_degree),
        (asked.ulysses_degree, dims.ulysses_degree),
    )
    return all(wanted in (None, degree) for wanted, degree in pairs)


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
