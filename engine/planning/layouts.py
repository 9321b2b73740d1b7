"""Enumerates the layouts of a number of ranks."""

from __future__ import annotations

from longtake.configs.parallel import ParallelConfig
from longtake.errors import LayoutError
from longtake.parallel import ParallelDims

NO_SECOND_PASS = "without classifier-free guidance there is no second pass"
MAX_RANKS = 1024
"""Most ranks that a plan covers: it sums what every rank sends to every other."""


def candidate_layouts(
    requested: ParallelConfig, devices: int, *, num_heads: int, num_passes: int
) -> list[ParallelDims]:
    """The layouts of a request that have the requested degrees; at least one.

    Args:
        requested: Degrees; None leaves one open.
        devices: Number of ranks.
        num_heads: Attention heads of the model, for the suggestion in an error.
        num_passes: Transformer passes of one step, which the cfg axis divides: 1 or 2.

    Returns:
        Layouts with ``cfg_degree=1`` first, each group by falling Ulysses degree.

    Raises:
        LayoutError: The degrees do not multiply to the devices, or there is no second pass.
    """
    if num_passes % (requested.cfg_degree or 1):
        raise LayoutError(
            f"cfg_degree={requested.cfg_degree}: {NO_SECOND_PASS}; turn guidance on, or leave "
            "cfg_degree at 1"
        )
    found = [d for d in matching_layouts(requested, devices) if num_passes % d.cfg_degree == 0]
    if not found:
        raise LayoutError(_degrees_error(requested, devices, num_heads))
    return found


def check_degrees(requested: ParallelConfig, devices: int, *, num_heads: int) -> None:
    """Check that the requested degrees suit some request on this number of devices.

    Raises:
        LayoutError: The degrees do not multiply to the devices.
    """
    if not matching_layouts(requested, devices):
        raise LayoutError(_degrees_error(requested, devices, num_heads))


def matching_layouts(requested: ParallelConfig, devices: int) -> list[ParallelDims]:
    """Every layout of the devices that has the requested degrees, whatever the request."""
    layouts = [
        ParallelDims(cfg_degree=cfg, ring_degree=devices // cfg // ulysses, ulysses_degree=ulysses)
        for cfg in (1, 2)
        if devices % cfg == 0
        for ulysses in range(devices // cfg, 0, -1)
        if devices // cfg % ulysses == 0
    ]
    degrees = (requested.cfg_degree, requested.ring_degree, requested.ulysses_degree)
    return [
        dims
        for dims in layouts
        if all(degree in (None, own) for degree, own in zip(degrees, dims.degrees, strict=True))
    ]


def _degrees_error(requested: ParallelConfig, devices: int, num_heads: int) -> str:
    """The message for degrees that do not multiply to the devices, with what would work."""
    degrees = {
        name: degree
        for name in ("cfg_degree", "ring_degree", "ulysses_degree")
        if (degree := getattr(requested, name)) is not None
    }
    product = " x ".join(f"{name}={degree}" for name, degree in degrees.items())
    needed = 1
    for degree in degrees.values():
        needed *= degree
    exact = len(degrees) == 3 or {"ring_degree", "ulysses_degree"} <= degrees.keys()
    cfg = requested.cfg_degree or 1
    cfg = cfg if devices % cfg == 0 else 1
    ulysses = max(u for u in range(1, num_heads + 1) if devices // cfg % u == 0)
    alternative = f"ring_degree={devices // cfg // ulysses} x ulysses_degree={ulysses}"
    if "cfg_degree" in degrees:
        alternative = f"cfg_degree={cfg} x {alternative}"
    return (
        f"{product} needs {'' if exact else 'a multiple of '}{needed} ranks, got "
        f"devices={devices}: try devices={needed}, or {alternative}"
    )
