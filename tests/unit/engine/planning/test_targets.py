"""13 billion parameters on cards that people own: peak memory, and time over resident weights.

Each row plans one request with its weights streamed, on a profile with PCIe 4.0.
"""

from __future__ import annotations

from typing import Any

import pytest

from longtake.engine.planning.prediction import predict
from longtake.engine.planning.weights.places import Placement
from longtake.parallel import ParallelDims
from tests.unit.engine.planning.test_planner import plan_input

GIB = 2**30
STREAMED = Placement("streamed", "streamed")
FOUR = ParallelDims(ring_degree=2, ulysses_degree=2)

ROWS: dict[str, tuple[str, dict[str, Any], ParallelDims, float, float]] = {
    "720p on a 4090": ("rtx4090", {}, ParallelDims(), 15, 0.03),
    "720p on an A100": ("a100-80g", {}, ParallelDims(), 15, 0.03),
    "544p on a 4080": ("rtx4080", {"height": 544, "width": 960}, ParallelDims(), 10.5, 0.05),
    "Wan A14B on an L40": (
        "l40",
        {"model": "wan2.2-t2v-a14b", "decode": "tiled"},
        ParallelDims(),
        19,
        0.05,
    ),
    "720p on four 4090": ("rtx4090", {}, FOUR, 10, 0.05),
}
"""Profile, request, layout, most GiB a rank, and largest share of time lost."""


@pytest.mark.parametrize("name", ROWS)
def test_a_target_is_met(name: str) -> None:
    gpu, changes, dims, gib, slower = ROWS[name]
    planned = plan_input(gpu, **changes)
    streamed, resident = (predict(planned, dims, each) for each in (STREAMED, Placement()))
    lost = streamed.step.seconds / resident.step.seconds - 1
    print(f"{name}: {streamed.memory.total / GIB:.2f} GiB, {100 * lost:.2f} % slower")
    assert 0 <= lost <= slower
    assert streamed.memory.total <= gib * GIB
    assert streamed.memory.text_stage < streamed.memory.denoising_stage


def test_a_host_holds_the_weights_once() -> None:
    """Not once a rank, on any number of ranks."""
    one, four = (predict(plan_input("rtx4090"), each, STREAMED) for each in (ParallelDims(), FOUR))
    assert four.memory.host.weights == one.memory.host.weights < 24 * GIB
