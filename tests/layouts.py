"""Layouts and head counts of the parity tests."""

from __future__ import annotations

from longtake.parallel import ParallelDims

LAYOUTS = [
    ParallelDims(ring_degree=world_size // ulysses_degree, ulysses_degree=ulysses_degree)
    for world_size in range(1, 7)
    for ulysses_degree in range(1, world_size + 1)
    if world_size % ulysses_degree == 0
]
"""All ring x ulysses layouts of 1 to 6 ranks."""

HEADS = [
    (num_heads, num_kv_heads)
    for num_heads in (1, 2, 3, 6, 8, 24)
    for num_kv_heads in range(1, num_heads + 1)
    if num_heads % num_kv_heads == 0
]
"""Numbers of query heads, with each number of KV heads that divides them."""


def layout_name(dims: ParallelDims) -> str:
    """A short name for test ids: r2u3, c2r1u3."""
    cfg = f"c{dims.cfg_degree}" if dims.cfg_degree > 1 else ""
    return f"{cfg}r{dims.ring_degree}u{dims.ulysses_degree}"
