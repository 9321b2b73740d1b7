"""Which layout a request runs in."""

from __future__ import annotations

import logging

from longtake.configs.parallel import ParallelConfig
from longtake.errors import LayoutError
from longtake.parallel import ParallelDims

logger = logging.getLogger(__name__)

_HEAD_LOSS = 1.125
"""Ulysses is preferred as long as uneven heads cost at most an eighth more time."""


def choose_dims(
    asked: ParallelConfig, devices: int, *, num_heads: int, true_cfg: bool
) -> ParallelDims:
    """The layout of one request: the degrees that were asked for, and a rule for the others.

    The rule: branches of true CFG side by side where the ranks are an even number; then the largest
    Ulysses degree whose uneven heads cost little, since it sends least; a ring of the rest.

    Args:
        devices: ranks.
        num_heads: of the model.
        true_cfg: whether the request has a negative branch.

    Raises:
        LayoutError: the degrees do not multiply to the devices, or there is no second branch.
    """
    if asked.cfg_degree == 2 and not true_cfg:
        raise LayoutError(
            "cfg_degree=2 without true CFG: there is no second branch to compute beside the first; "
            "pass true_cfg_scale above 1 and a negative_prompt, or leave cfg_degree at 1"
        )
    candidates = [asked.cfg_degree] if asked.cfg_degree else ([2, 1] if true_cfg else [1])
    for cfg_degree in candidates:
        dims = _fit(asked, devices, cfg_degree, num_heads)
        if dims is not None:
            return _warned(dims, num_heads)
    raise LayoutError(_misfit(asked, devices, candidates[-1], num_heads))


def check_degrees(asked: ParallelConfig, devices: int, *, num_heads: int) -> None:
    """Refuse degrees that fit no request at all on so many devices.

    Raises:
        LayoutError: they do not multiply to the devices.
    """
    candidates = [asked.cfg_degree] if asked.cfg_degree else [1, 2]
    if all(_fit(asked, devices, cfg_degree, num_heads) is None for cfg_degree in candidates):
        raise LayoutError(_misfit(asked, devices, candidates[0], num_heads))


def _fit(
    asked: ParallelConfig, devices: int, cfg_degree: int, num_heads: int
) -> ParallelDims | None:
    """The layout with these degrees, if they multiply to the devices."""
    sequence_degree, rest = divmod(devices, cfg_degree)
    if rest:
        return None
    ulysses_degree, ring_degree = asked.ulysses_degree, asked.ring_degree
    if ulysses_degree is None:
        if ring_degree is None:
            ulysses_degree = _ulysses_degree(sequence_degree, num_heads)
        else:
            ulysses_degree = max(1, sequence_degree // ring_degree)
    if ring_degree is None:
        ring_degree = max(1, sequence_degree // ulysses_degree)
    if ring_degree * ulysses_degree != sequence_degree:
        return None
    return ParallelDims(
        cfg_degree=cfg_degree, ring_degree=ring_degree, ulysses_degree=ulysses_degree
    )


def _ulysses_degree(sequence_degree: int, num_heads: int) -> int:
    def loss(degree: int) -> float:
        """Time with uneven heads, over that with even ones."""
        return -(-num_heads // degree) * degree / num_heads

    divisors = [d for d in range(1, sequence_degree + 1) if sequence_degree % d == 0]
    return max(degree for degree in divisors if loss(degree) <= _HEAD_LOSS)


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


def _misfit(asked: ParallelConfig, devices: int, cfg_degree: int, num_heads: int) -> str:
    given = {
        name: degree
        for name in ("cfg_degree", "ring_degree", "ulysses_degree")
        if (degree := getattr(asked, name)) is not None
    }
    words = " x ".join(f"{name}={degree}" for name, degree in given.items())
    needs = 1
    for degree in given.values():
        needs *= degree
    multiple = (
        ""
        if len(given) == 3 or {"ring_degree", "ulysses_degree"} <= given.keys()
        else ("a multiple of ")
    )
    usable = cfg_degree if devices % cfg_degree == 0 else 1
    sequence_degree = devices // usable
    ulysses_degree = _ulysses_degree(sequence_degree, num_heads)
    works = f"ring_degree={sequence_degree // ulysses_degree} x ulysses_degree={ulysses_degree}"
    if "cfg_degree" in given or usable > 1:
        works = f"cfg_degree={usable} x {works}"
    return (
        f"{words} needs {multiple}{needs} ranks, got devices={devices}: try devices={needs}, or "
        f"{works}"
    )
